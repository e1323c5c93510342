"""Which plots a run or a comparison of runs gets. Loads matplotlib: see drawing.py."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from posttrain.report.curves import Line, describe, draw_band, draw_lines, draw_mark, metrics
from posttrain.report.drawing import Plot, over_steps, short
from posttrain.report.score_plots import reply_length, scores, validation
from posttrain.run.record import Run, number

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
    band: tuple[str, ...] = ()
    """Keys of the lowest and the highest value, between which the area is filled."""
    floor: float | None = None
    """The axis begins at 0, and ends there or above."""
    limit: str = ""
    """The setting in `training` that is marked where the values come near."""


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
        lines = [line for run in runs for line in metrics(run, {key: short(run.name, 40)})]
        if len(lines) > 1:
            drawn.append(_plot(each, lines))
    return drawn


def curve(run: Run, what: Curve) -> Plot | None:
    """A plot of the run's metrics; None where it has none of them."""
    lines = metrics(run, {**what.keys, **_parts(run, what.parts)})
    if not lines:
        return None
    ends = [line for key in what.band for line in metrics(run, {key: key})]
    limit = number(run.section("training").get(what.limit))
    if what is LOSS and run.section("training").get("loss_type") == ["sigmoid"]:
        what = replace(what, about=what.about + LN_2)
    return _plot(what, lines, ends, limit)


def _plot(
    what: Curve, lines: Sequence[Line], ends: Sequence[Line] = (), limit: float | None = None
) -> Plot:
    """Lines over steps, in their own unit or in percent."""
    share = what.unit.startswith("of ")
    top = min(1.0, max(0.05, 1.2 * _highest(lines))) if share else None

    def draw(axes: Axes) -> None:
        draw_lines(axes, lines)
        over_steps(axes, top)
        if len(ends) == 2 and len(ends[0].steps) == len(ends[1].steps):
            draw_band(axes, ends[0].steps, ends[0].values, ends[1].values)
        if limit and limit < 1.6 * _highest([*lines, *ends]):
            draw_mark(axes, "limit", value=limit)
        if what.floor is not None:
            axes.set_ylim(0, max(what.floor, axes.get_ylim()[1]))

    alt = describe(what.title, lines, share)
    return Plot(what.name, what.title, what.about, alt, what.unit, draw)


def _highest(lines: Sequence[Line]) -> float:
    return max(float(np.nanmax(line.values)) for line in lines)


def _parts(run: Run, what: str) -> dict[str, str]:
    """`{rewards/NAME/what: NAME}` in the order of the settings, so that colours stay the same."""
    pattern = re.compile(rf"rewards/(.+)/{what}")
    keys = {m[1]: m[0] for row in run.metrics for key in row if (m := pattern.fullmatch(key))}
    order = [name for name in run.section("rewards") if name in keys]
    names = [*order, *sorted(keys.keys() - set(order))]
    return {keys[name]: short(name) for name in names} if what and len(names) > 1 else {}
