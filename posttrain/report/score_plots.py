"""Plots of what was scored before and after training. Loads matplotlib: see drawing.py."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from posttrain.report.drawing import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    Plot,
    over_steps,
    percent_axis,
)
from posttrain.report.lines import Floats
from posttrain.run import measures
from posttrain.run.record import Record, number

LABEL = 26  # characters of a line of a measure's label


def reply_length(record: Record) -> Plot | None:
    lengths = {
        side: np.array([reply.tokens for reply in replies])
        for side, replies in record.replies.items()
    }
    shown = {side: found for side, found in lengths.items() if len(found)}
    if not shown:
        return None
    longest = max(float(found.max()) for found in shown.values())
    bins = np.linspace(0, max(longest, 1) * 1.02, 25).tolist()
    medians = [f"{side} {np.median(found):.0f}" for side, found in shown.items()]
    about = f"Tokens of the replies to the held-out prompts (median: {', '.join(medians)})."

    def draw(axes: Axes) -> None:
        for (side, found), colour in zip(shown.items(), (MUTED, COLOURS[0]), strict=False):
            weights = np.full(len(found), 1 / len(found))
            axes.hist(found, bins, weights=weights, color=colour, alpha=0.22, lw=0)
            axes.hist(
                found, bins, weights=weights, color=colour, histtype="step", lw=1.8, label=side
            )
        over_steps(axes, min(1.0, 1.05 * axes.get_ylim()[1]))
        axes.set_xlabel("tokens")

    return Plot("reply_length", "Reply length", about, about, "of replies", draw)


def scores(record: Record) -> Plot | None:
    """The shares of replies or pairs before and after, with their 95% intervals; the rewards, where
    they are the scores."""
    sides: dict[str, dict[str, Any]] = {"before": record.before, "after": record.after}
    shown = measures.is_reward if record.text_answers else measures.is_share
    names = [
        name
        for name in dict.fromkeys((*record.before, *record.after))
        if shown(name)
        and any(isinstance(side.get(name), dict) and _whole(side[name]) for side in sides.values())
    ]
    if not names:
        return None
    said = [
        f"{measures.label(name)} "
        + " to ".join(
            measures.plain(name, values[name]["value"])
            for values in sides.values()
            if isinstance(values.get(name), dict)
        )
        for name in names
    ]
    return Plot(
        "scores",
        "Before and after",
        "Held-out scores before and after training, with 95% intervals.",
        f"Before and after training: {'; '.join(said)}.",
        "",
        partial(_draw_scores, names=names, sides=sides),
        height=0.9 + 0.46 * len(names),
    )


def _tick_label(label: str) -> str:
    """A label in at most two lines: the set of problems and the measure."""
    lines = [label] if len(label) <= LABEL else label.rsplit(": ", 1)
    cut = [line if len(line) <= LABEL else f"{line[: LABEL - 1]}…" for line in lines]
    return ":\n".join(cut)


def _whole(measure: dict[str, Any]) -> bool:
    return all(number(measure.get(key)) is not None for key in ("value", "low", "high"))


def _draw_scores(axes: Axes, names: Sequence[str], sides: dict[str, dict[str, Any]]) -> None:
    for (side, values), colour, offset in zip(
        sides.items(), (MUTED, COLOURS[0]), (-0.14, 0.14), strict=True
    ):
        places = [place for place, name in enumerate(names) if _whole(values.get(name) or {})]
        points: Floats = np.array(
            [[values[names[place]][key] for key in ("value", "low", "high")] for place in places],
            dtype=float,
        ).reshape(-1, 3)
        value, low, high = points.T
        rows = np.array(places) + offset
        # Rounding can put an interval's end a hair beyond its value.
        error = np.maximum([value - low, high - value], 0)
        axes.errorbar(
            value, rows, xerr=error, fmt="o", color=colour, ms=6, lw=2.2, label=side,
            mfc="white" if side == "before" else colour, mew=1.6,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [_tick_label(measures.label(name)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    for place in range(1, len(names)):
        axes.axhline(place - 0.5, color=GRID, lw=0.8)
    if measures.is_share(names[0]):
        percent_axis(axes, "x")
