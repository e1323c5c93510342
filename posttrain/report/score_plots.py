"""Plots of what was scored: before and after and in validation. Loads matplotlib."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from eval import figures
from eval.measures import is_reward, is_share
from eval.stats import Measure
from posttrain.report.curves import Floats, Line, describe, draw_band, draw_mark, floats
from posttrain.report.drawing import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    Plot,
    over_steps,
    percent_axis,
    short,
)
from posttrain.run.record import Run

LABEL = 26  # characters of a line of a measure's label


def validation(run: Run) -> Plot | None:
    """The measure that decides which adapter is kept, with its interval."""
    name = (run.environment.kept and run.environment.kept.by) or run.main_measure
    rows = [row for row in run.validation if row.step >= 0]
    measured_at = [row.measures.get(name, Measure()) for row in rows]
    steps, label = floats(row.step for row in rows), figures.label(name)
    values, low, high = _ends(measured_at)
    if not np.isfinite(values).any():
        return None
    share = is_share(name)

    def draw(axes: Axes) -> None:
        draw_band(axes, steps, low, high)
        axes.plot(steps, values, color=COLOURS[0], marker="o", ms=4)
        if run.environment.kept is not None:
            draw_mark(axes, "kept", step=run.environment.kept.step)
        over_steps(axes, 1.0 if share else None)

    about = (
        "On rows set aside from the training data, with 95% intervals. They choose the step whose "
        "adapter is kept; the held-out questions have no part in that."
    )
    alt = describe("Validation", [Line(label, steps, values)], share)
    return Plot("validation", "Validation", about, alt, label, draw)


def reply_length(run: Run) -> Plot | None:
    """How long the replies to the held-out prompts are, before and after."""
    shown = {
        side: np.array(lengths)
        for side, replies in run.replies.items()
        if (lengths := [reply.tokens for reply in replies if reply.tokens is not None])
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
    sides = {
        side: {k: v for k, v in measured.items() if shown(k) and v.low is not None}
        for side, measured in (("before", run.before), ("after", run.after))
    }
    names = [*(sides["before"] | sides["after"])]
    if not names:
        return None

    def draw(axes: Axes) -> None:
        for (side, measured), colour, offset in zip(
            sides.items(), (MUTED, COLOURS[0]), (-0.14, 0.14), strict=True
        ):
            value, low, high = _ends([measured.get(name, Measure()) for name in names])
            # Rounding can put an interval's end a hair beyond its value.
            error: Floats = np.maximum([value - low, high - value], 0)
            axes.errorbar(
                value, np.arange(len(names)) + offset, xerr=error, fmt="o", label=side, ms=6,
                color=colour, lw=2.2, mfc="white" if side == "before" else colour, mew=1.6,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), [_tick_label(figures.label(name)) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        for row in range(1, len(names)):
            axes.axhline(row - 0.5, color=GRID, lw=0.8)
        if is_share(names[0]):
            percent_axis(axes, "x")

    listed = []
    for name in names:
        ends = [figures.plain(name, side[name].value) for side in sides.values() if name in side]
        listed.append(f"{figures.label(name)} {' to '.join(ends)}")
    return Plot(
        "scores",
        "Before and after",
        "Held-out scores before and after training, with 95% intervals.",
        f"Before and after training: {'; '.join(listed)}.",
        "",
        draw,
        height=0.9 + 0.46 * len(names),
    )


def _ends(measures: Sequence[Measure]) -> tuple[Floats, Floats, Floats]:
    """Values, and the ends of their intervals."""
    value, low, high = (
        floats(getattr(each, end) for each in measures) for end in ("value", "low", "high")
    )
    return value, low, high


def _tick_label(label: str) -> str:
    """A label in at most two lines: the set of problems and the measure."""
    lines = [label] if len(label) <= LABEL else label.rsplit(": ", 1)
    return ":\n".join(short(line, LABEL) for line in lines)
