"""Which plots a run gets, from its record. Loads matplotlib: see drawing.py."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from posttrain.report.drawing import COLOURS, MUTED, Plot, over_steps
from posttrain.report.lines import Line, draw_band, draw_lines
from posttrain.report.score_plots import reply_length, scores
from posttrain.run import measures
from posttrain.run.record import Record, number, section

ACCURACY = "Training pairs of each step whose chosen reply has the higher implicit reward."


def plots(record: Record) -> list[Plot]:
    """The plots that the record has data for, the most telling first."""
    kinds = [_validation]
    if record.method == "GRPO":
        kinds += [_reward, _spread, _length, _truncation, _kl, _sampling]
    elif record.method == "SFT":
        kinds += [_loss, _token_accuracy]
    else:
        kinds += [_loss, _margin, _accuracy, reply_length]
    drawn = (kind(record) for kind in [*kinds, scores])
    return [plot for plot in drawn if plot is not None]


def compared(records: Sequence[Record]) -> list[Plot]:
    """The same metric of several runs in one plot, where at least two of them have it."""
    found: list[Plot | None] = []
    for key, title, about, unit in (
        ("reward", "Reward", "Mean reward of the completions of each step.", "reward"),
        (
            "rewards/margins",
            "Reward margin",
            "Implicit reward, chosen less rejected, of each step.",
            "reward",
        ),
        ("rewards/accuracies", "Reward accuracy", ACCURACY, "of pairs"),
    ):
        lines = [
            line for record in records for line in _lines(record, {key: _short(record.name, 40)})
        ]
        if len(lines) > 1:
            found.append(
                _over_steps(
                    key.replace("/", "_"),
                    title,
                    about,
                    unit,
                    lines,
                    share=unit == "of pairs",
                )
            )
    return [plot for plot in found if plot is not None]


def _lines(record: Record, wanted: dict[str, str]) -> list[Line]:
    """The metrics of `{key: label}` that hold at least one finite number."""
    lines = []
    for key, label in wanted.items():
        rows = [row for row in record.metrics if key in row and number(row.get("step")) is not None]
        values = np.array([_or_nan(row[key]) for row in rows])
        if np.isfinite(values).any():
            lines.append(Line(label, np.array([float(row["step"]) for row in rows]), values))
    return lines


def _or_nan(value: Any) -> float:
    found = number(value)
    return float("nan") if found is None else found


def _over_steps(
    name: str, title: str, about: str, unit: str, lines: list[Line], share: bool = False
) -> Plot | None:
    """Lines over steps, in their own unit or in percent; None without lines."""
    if not lines:
        return None
    highest = max(float(np.nanmax(line.values)) for line in lines)
    top = min(1.0, max(0.05, 1.2 * highest)) if share else None

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines)
        over_steps(axes, top)

    return Plot(name, title, about, _in_words(title, lines, share), unit, draw)


def _in_words(title: str, lines: Sequence[Line], share: bool) -> str:
    """`Reward: total from 0.9 at step 1 to 2.9 at step 40.`"""
    said = []
    for line in lines:
        known = np.flatnonzero(np.isfinite(line.values))
        first, last = int(known[0]), int(known[-1])
        ends = [
            f"{line.values[place]:{'.0%' if share else '.3g'}} at step {line.steps[place]:.0f}"
            for place in (first, last)
        ]
        said.append(f"{line.label} from {ends[0]} to {ends[1]}")
    return f"{title}: {'; '.join(said)}."


def _parts(record: Record, what: str) -> dict[str, str]:
    """`{rewards/NAME/what: NAME}` in the order of the settings, so that colours stay the same."""
    pattern = re.compile(rf"rewards/(.+)/{what}")
    found = {m[1]: m[0] for row in record.metrics for key in row if (m := pattern.fullmatch(key))}
    order = [name for name in section(record.config, "rewards") if name in found]
    names = [*order, *sorted(found.keys() - set(order))]
    return {found[name]: _short(name) for name in names} if len(names) > 1 else {}


def _validation(record: Record) -> Plot | None:
    """The measure that decides which adapter is kept, with its interval."""
    name = str(record.kept.get("by") or record.main_measure)
    rows = [row for row in record.validation if number(row.get("step")) is not None]
    steps = np.array([float(row["step"]) for row in rows])
    found = [section(section(row, "measures"), name) for row in rows]
    value, low, high = (
        Line(label, steps, np.array([_or_nan(each.get(key)) for each in found]))
        for label, key in ((measures.label(name), "value"), ("low", "low"), ("high", "high"))
    )
    if not np.isfinite(value.values).any():
        return None
    share, kept = measures.is_share(name), number(record.kept.get("step"))
    about = (
        "On rows set aside from the training data, with 95% intervals. They choose the step whose "
        "adapter is kept; the held-out questions have no part in that."
    )

    def draw(axes: Axes) -> None:
        draw_band(axes, low, high)
        axes.plot(value.steps, value.values, color=COLOURS[0], marker="o", ms=4)
        if kept is not None:
            axes.axvline(kept, color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.annotate(
                "kept", (kept, 0.02), xycoords=("data", "axes fraction"), ha="right", va="bottom",
                xytext=(-3, 0), textcoords="offset points", color=MUTED,
            )  # fmt: skip
        over_steps(axes, 1.0 if share else None)

    alt = _in_words("Validation", [value], share)
    return Plot("validation", "Validation", about, alt, measures.label(name), draw)


def _reward(record: Record) -> Plot | None:
    wanted = {"reward": "total", **_parts(record, "mean")}
    about = "Mean reward of the completions of a step, and of each reward function before weights."
    return _over_steps("reward", "Reward by part", about, "reward", _lines(record, wanted))


def _spread(record: Record) -> Plot | None:
    wanted = {"frac_reward_zero_std": "total", **_parts(record, "zero_spread")}
    about = (
        "Groups in which every completion earned the same. They teach nothing: near 100% the "
        "problems are all too easy or all too hard."
    )
    lines = _lines(record, wanted)
    return _over_steps("spread", "Groups without spread", about, "of groups", lines, share=True)


def _length(record: Record) -> Plot | None:
    wanted = {"completions/mean_length": "mean"}
    lines = _lines(record, wanted)
    low, high = (_lines(record, {f"completions/{end}_length": end}) for end in ("min", "max"))
    limit = number(section(record.config, "training").get("max_completion_length"))
    about = "Tokens of a completion: the mean, and from the shortest to the longest of each step."
    plot = _over_steps("completion_length", "Completion length", about, "tokens", lines)
    if plot is None:
        return None

    def draw(axes: Axes) -> None:
        if low and high and len(low[0].steps) == len(high[0].steps):
            draw_band(axes, low[0], high[0])
        draw_lines(axes, lines)
        longest = max(float(np.nanmax(line.values)) for line in (*lines, *high))
        if limit and limit < 1.6 * longest:
            axes.axhline(limit, color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.annotate(
                "limit", (0.995, limit), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", xytext=(0, 2), textcoords="offset points", color=MUTED,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        over_steps(axes)

    return Plot(plot.name, plot.title, about, plot.alt, plot.unit, draw)


def _truncation(record: Record) -> Plot | None:
    about = "Completions that the length limit cut off. Many of them: raise max_completion_length."
    lines = _lines(record, {"completions/clipped_ratio": "truncated"})
    unit = "of completions"
    return _over_steps("truncation", "Truncated completions", about, unit, lines, share=True)


def _kl(record: Record) -> Plot | None:
    about = "Distance from the reference, per token. Logged where training.beta is above 0."
    return _over_steps("kl", "KL from the reference", about, "nats", _lines(record, {"kl": "KL"}))


def _sampling(record: Record) -> Plot | None:
    about = (
        "How far the log-probability that a token was sampled with is from the one that is trained "
        "on. Rounding makes it; near 0.1 the policy learns from what another model wrote."
    )
    names = {f"sampling/sampling_logp_difference/{name}": name for name in ("mean", "max")}
    lines = _lines(record, names)
    plot = _over_steps("sampling", "Sampled against trained", about, "nats a token", lines)
    if plot is None:
        return None

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines)
        over_steps(axes)
        axes.set_ylim(0, max(0.01, axes.get_ylim()[1]))  # float32 is a line at 0, and not noise

    return Plot(plot.name, plot.title, about, plot.alt, plot.unit, draw)


def _loss(record: Record) -> Plot | None:
    about = "The training loss."
    if section(record.config, "training").get("loss_type") == ["sigmoid"]:
        about += " It starts at ln 2 = 0.69: the policy is the reference, and prefers nothing yet."
    return _over_steps("loss", "Loss", about, "loss", _lines(record, {"loss": "loss"}))


def _token_accuracy(record: Record) -> Plot | None:
    lines = _lines(record, {"mean_token_accuracy": "token accuracy"})
    about = "Tokens of the replies of each step that the policy finds the most likely."
    return _over_steps("token_accuracy", "Token accuracy", about, "of tokens", lines, share=True)


def _margin(record: Record) -> Plot | None:
    about = (
        "Implicit rewards of the training pairs. A margin that grows only because both fall means "
        "that the chosen replies are becoming less likely too."
    )
    wanted = {
        "rewards/margins": "margin",
        "rewards/chosen": "chosen",
        "rewards/rejected": "rejected",
    }
    return _over_steps("margin", "Reward margin", about, "reward", _lines(record, wanted))


def _accuracy(record: Record) -> Plot | None:
    lines = _lines(record, {"rewards/accuracies": "accuracy"})
    return _over_steps("accuracy", "Reward accuracy", ACCURACY, "of pairs", lines, share=True)


def _short(name: str, most: int = 16) -> str:
    """A name that fits a legend."""
    name = name.replace("_", " ")
    return name if len(name) <= most else f"{name[: most - 1]}…"
