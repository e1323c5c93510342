"""Which plots a run, a comparison of runs, or a grid gets. Loads matplotlib: see drawing.py."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from eval import figures
from eval.measures import is_reward, is_share
from eval.stats import Measure
from posttrain.report.curves import (
    Floats,
    Line,
    describe,
    draw_band,
    draw_lines,
    draw_mark,
    floats,
    metrics,
)
from posttrain.report.drawing import (
    COLOURS,
    GRID,
    MUTED,
    Plot,
    over_steps,
    percent_axis,
    rows_axis,
)
from posttrain.report.verdict import capital
from posttrain.run.record import Run, number
from posttrain.run.repeated import Grid

LABEL = 26  # characters of a line of a measure's label
LN_2 = " It starts at ln 2 = 0.69: the policy is the reference, and prefers nothing yet."


@dataclass(frozen=True)
class Curve:
    """A plot of metrics over steps."""

    name: str
    title: str
    about: str
    unit: str
    keys: Mapping[str, str]
    """Key in metrics.jsonl -> label."""
    parts: str = ""
    """Also `rewards/NAME/<parts>`, a line a reward, where there are several."""
    band: tuple[str, str] | None = None
    """Keys of the lowest and the highest value, between which the area is filled."""
    floor: float | None = None
    """The axis begins at 0, and ends there or above."""
    limit: str = ""
    """The setting in `training` that is marked where the values come near."""

    @property
    def share(self) -> bool:
        """In percent of something."""
        return self.unit.startswith("of ")


REWARD = Curve(
    "reward", "Reward by part",
    "Mean reward of the completions of a step, and of each reward function before weights.",
    "reward", {"reward": "total"}, parts="mean",
)  # fmt: skip
MARGIN = Curve(
    "margin", "Reward margin",
    "Implicit rewards of the training pairs. A margin that grows only because both fall means that "
    "the chosen replies are becoming less likely too.",
    "reward",
    {"rewards/margins": "margin", "rewards/chosen": "chosen", "rewards/rejected": "rejected"},
)  # fmt: skip
ACCURACY = Curve(
    "accuracy", "Reward accuracy",
    "Training pairs of each step whose chosen reply has the higher implicit reward.",
    "of pairs", {"rewards/accuracies": "accuracy"},
)  # fmt: skip
LOSS = Curve("loss", "Loss", "The training loss.", "loss", {"loss": "loss"})
CURVES = {
    "GRPO": (
        REWARD,
        Curve(
            "spread", "Groups without spread",
            "Groups in which every completion earned the same. They teach nothing: near 100% the "
            "problems are all too easy or all too hard.",
            "of groups", {"frac_reward_zero_std": "total"}, parts="zero_spread",
        ),
        Curve(
            "completion_length", "Completion length",
            "Tokens of a completion: the mean, and from the shortest to the longest of each step.",
            "tokens", {"completions/mean_length": "mean"},
            band=("completions/min_length", "completions/max_length"),
            floor=0.0, limit="max_completion_length",
        ),
        Curve(
            "truncation", "Truncated completions",
            "Completions that the length limit cut off. Many of them: raise max_completion_length.",
            "of completions", {"completions/clipped_ratio": "truncated"},
        ),
        Curve(
            "kl", "KL from the reference",
            "Distance from the reference, per token. Logged where training.beta is above 0.",
            "nats", {"kl": "KL"},
        ),
        Curve(
            "sampling", "Sampled against trained",
            "How far the log-probability that a token was sampled with is from the one that is "
            "trained on. Rounding makes it; near 0.1 the policy learns from what another model "
            "wrote.",
            "nats a token",
            {f"sampling/sampling_logp_difference/{name}": name for name in ("mean", "max")},
            floor=0.01,  # float32 is a line at 0, and not noise
        ),
    ),
    "SFT": (
        LOSS,
        Curve(
            "token_accuracy", "Token accuracy",
            "Tokens of the replies of each step that the policy finds the most likely.",
            "of tokens", {"mean_token_accuracy": "token accuracy"},
        ),
    ),
    "DPO": (LOSS, MARGIN, ACCURACY),
}  # fmt: skip
COMPARED = (
    Curve("reward", "Reward", "Mean reward of the completions of each step.", "reward",
          {"reward": ""}),
    Curve("rewards_margins", "Reward margin",
          "Implicit reward, chosen less rejected, of each step.", "reward",
          {"rewards/margins": ""}),
    Curve("rewards_accuracies", ACCURACY.title, ACCURACY.about, ACCURACY.unit,
          {"rewards/accuracies": ""}),
)  # fmt: skip


def plots(run: Run) -> list[Plot]:
    """The plots that the run has data for, the most telling first."""
    curves = [curve(run, each) for each in CURVES.get(run.method, CURVES["DPO"])]
    lengths = [] if run.method in ("GRPO", "SFT") else [reply_length(run)]
    drawn = [validation(run), *curves, *lengths, scores(run)]
    return [plot for plot in drawn if plot is not None]


def compared(runs: Sequence[Run]) -> list[Plot]:
    """The same metric of several runs in one plot, where at least two of them have it."""
    drawn = []
    for each in COMPARED:
        (key,) = each.keys
        lines = [line for run in runs for line in metrics(run, {key: _short(run.name, 40)})]
        if len(lines) > 1:
            drawn.append(_plot(each, lines, lambda axes: None))
    return drawn


def curve(run: Run, what: Curve) -> Plot | None:
    """A plot of the run's metrics; None where it has none of them."""
    lines = metrics(run, {**what.keys, **_parts(run, what.parts)})
    if not lines:
        return None
    band = [metrics(run, {key: key}) for key in what.band or ()]
    ends = [line for found in band for line in found]
    limit = number(run.section("training").get(what.limit))
    about = what.about
    if what is LOSS and run.section("training").get("loss_type") == ["sigmoid"]:
        about += LN_2

    def draw_more(axes: Axes) -> None:
        if len(ends) == 2 and len(ends[0].steps) == len(ends[1].steps):
            draw_band(axes, *ends)
        longest = max(float(np.nanmax(line.values)) for line in (*lines, *ends))
        if limit and limit < 1.6 * longest:
            draw_mark(axes, "limit", value=limit)
        if what.floor is not None:
            axes.set_ylim(0, max(what.floor, axes.get_ylim()[1]))

    return _plot(what, lines, draw_more, about)


def _plot(
    what: Curve, lines: Sequence[Line], draw_more: Callable[[Axes], None], about: str = ""
) -> Plot:
    """Lines over steps, in their own unit or in percent."""
    highest = max(float(np.nanmax(line.values)) for line in lines)
    top = min(1.0, max(0.05, 1.2 * highest)) if what.share else None

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines)
        over_steps(axes, top)
        draw_more(axes)

    alt = describe(what.title, lines, what.share)
    return Plot(what.name, what.title, about or what.about, alt, what.unit, draw)


def _parts(run: Run, what: str) -> dict[str, str]:
    """`{rewards/NAME/what: NAME}` in the order of the settings, so that colours stay the same."""
    pattern = re.compile(rf"rewards/(.+)/{what}")
    found = {m[1]: m[0] for row in run.metrics for key in row if (m := pattern.fullmatch(key))}
    order = [name for name in run.section("rewards") if name in found]
    names = [*order, *sorted(found.keys() - set(order))]
    return {found[name]: _short(name) for name in names} if what and len(names) > 1 else {}


def validation(run: Run) -> Plot | None:
    """The measure that decides which adapter is kept, with its interval."""
    name = (run.kept and run.kept.by) or run.main_measure
    rows = [row for row in run.validation if row.step >= 0]
    found = [row.measures.get(name, Measure()) for row in rows]
    steps, label = floats(row.step for row in rows), figures.label(name)
    value = Line(label, steps, floats(each.value for each in found))
    if not np.isfinite(value.values).any():
        return None
    low, high = (
        Line(end, steps, floats(getattr(each, end) for each in found)) for end in ("low", "high")
    )
    share = is_share(name)

    def draw(axes: Axes) -> None:
        draw_band(axes, low, high)
        axes.plot(value.steps, value.values, color=COLOURS[0], marker="o", ms=4)
        if run.kept is not None:
            draw_mark(axes, "kept", step=run.kept.step)
        over_steps(axes, 1.0 if share else None)

    about = (
        "On rows set aside from the training data, with 95% intervals. They choose the step whose "
        "adapter is kept; the held-out questions have no part in that."
    )
    alt = describe("Validation", [value], share)
    return Plot("validation", "Validation", about, alt, label, draw)


def reply_length(run: Run) -> Plot | None:
    """How long the replies to the held-out prompts are, before and after."""
    shown = {
        side: np.array([reply.tokens for reply in replies])
        for side, replies in run.replies.items()
        if replies
    }
    if not shown:
        return None
    longest = max(float(tokens.max()) for tokens in shown.values())
    bins = np.linspace(0, max(longest, 1) * 1.02, 25).tolist()
    medians = [f"{side} {np.median(tokens):.0f}" for side, tokens in shown.items()]
    about = f"Tokens of the replies to the held-out prompts (median: {', '.join(medians)})."

    def draw(axes: Axes) -> None:
        for (side, tokens), colour in zip(shown.items(), (MUTED, COLOURS[0]), strict=False):
            weights = np.full(len(tokens), 1 / len(tokens))
            axes.hist(tokens, bins, weights=weights, color=colour, alpha=0.22, lw=0)
            axes.hist(
                tokens, bins, weights=weights, color=colour, histtype="step", lw=1.8, label=side
            )
        over_steps(axes, min(1.0, 1.05 * axes.get_ylim()[1]))
        axes.set_xlabel("tokens")

    return Plot("reply_length", "Reply length", about, about, "of replies", draw)


def scores(run: Run) -> Plot | None:
    """The shares of replies or pairs before and after, with their 95% intervals; the rewards, where
    they are the scores."""
    shown = is_reward if run.text_answers else is_share
    known = {
        side: {
            name: each
            for name, each in measured.items()
            if shown(name) and None not in (each.value, each.low, each.high)
        }
        for side, measured in (("before", run.before), ("after", run.after))
    }  # fmt: skip
    names = [
        name
        for name in dict.fromkeys((*run.before, *run.after))
        if name in known["before"] or name in known["after"]
    ]
    if not names:
        return None

    def draw(axes: Axes) -> None:
        for (side, measured), colour, offset in zip(
            known.items(), (MUTED, COLOURS[0]), (-0.14, 0.14), strict=True
        ):
            rows = [row for row, name in enumerate(names) if name in measured]
            own = [measured[names[row]] for row in rows]
            value, low, high = (
                floats(getattr(each, end) for each in own) for end in ("value", "low", "high")
            )
            # Rounding can put an interval's end a hair beyond its value.
            error: Floats = np.maximum([value - low, high - value], 0)
            axes.errorbar(
                value, np.array(rows) + offset, xerr=error, fmt="o", color=colour, ms=6, lw=2.2,
                label=side, mfc="white" if side == "before" else colour, mew=1.6,
            )  # fmt: skip
        rows_axis(axes, [_tick_label(figures.label(name)) for name in names])
        for row in range(1, len(names)):
            axes.axhline(row - 0.5, color=GRID, lw=0.8)
        if is_share(names[0]):
            percent_axis(axes, "x")

    ends = [
        " to ".join(figures.plain(name, m[name].value) for m in known.values() if name in m)
        for name in names
    ]
    listed = [f"{figures.label(name)} {end}" for name, end in zip(names, ends, strict=True)]
    return Plot(
        "scores",
        "Before and after",
        "Held-out scores before and after training, with 95% intervals.",
        f"Before and after training: {'; '.join(listed)}.",
        "",
        draw,
        height=0.9 + 0.46 * len(names),
    )


def validation_by_value(grid: Grid) -> Plot:
    """Every seed's validation as a point, their mean as a bar, a row a value that was trained."""
    rows = [(value, value.mean) for value in grid.values if value.mean is not None]
    label = capital(figures.label(grid.by))

    def draw(axes: Axes) -> None:
        for row, (value, mean) in enumerate(rows):
            colour = COLOURS[0] if value.name == grid.chosen else MUTED
            points = [row] * len(value.values)
            axes.plot(value.values, points, "o", color=colour, ms=7, mew=0, alpha=0.55)
            axes.plot(mean, row, "|", color=colour, ms=20, mew=2.4)
        rows_axis(axes, [value.label for value, _ in rows])
        axes.margins(x=0.08)
        if is_share(grid.by):
            percent_axis(axes, "x")

    means = "; ".join(f"{value.label} {figures.plain(grid.by, mean)}" for value, mean in rows)
    return Plot(
        "grid",
        "Validation by value",
        f"{label} of the step that was kept. A point a seed, a bar their mean; in colour the value "
        "that was chosen.",
        f"{figures.label(grid.by)} by value: {means}.",
        figures.label(grid.by),
        draw,
        height=0.9 + 0.46 * len(rows),
    )


def _tick_label(label: str) -> str:
    """A label in at most two lines: the set of problems and the measure."""
    lines = [label] if len(label) <= LABEL else label.rsplit(": ", 1)
    return ":\n".join(_short(line, LABEL) for line in lines)


def _short(name: str, most: int = 16) -> str:
    """A name that fits a legend."""
    name = name.replace("_", " ")
    return name if len(name) <= most else f"{name[: most - 1]}…"
