"""Lines of metrics over steps: smoothed, and thinned so that a page of a long run stays small."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from posttrain.report.drawing import COLOURS

MOST_POINTS = 300  # of a drawn line
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Values of one metric over steps; a gap is NaN."""

    label: str
    steps: Floats
    values: Floats


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line as it was measured, faint, and its moving average."""
    for line, colour in zip(lines, COLOURS * 3, strict=False):
        finite = int(np.isfinite(line.values).sum())
        if finite < 8:
            axes.plot(line.steps, line.values, "o-", color=colour, ms=4, lw=1.6, label=line.label)
            continue
        axes.plot(*thin(line.steps, line.values), color=colour, lw=0.9, alpha=0.4)
        smooth = moving_average(line.values)
        axes.plot(*thin(line.steps, smooth), color=colour, lw=2.0, label=line.label)


def draw_band(axes: Axes, low: Line, high: Line) -> None:
    """The room between the lowest and the highest value, in at most MOST_POINTS stretches."""
    stretches = np.array_split(np.arange(len(low.steps)), min(len(low.steps), MOST_POINTS))
    bottom = [_extreme(np.min, low.values[stretch]) for stretch in stretches]
    top = [_extreme(np.max, high.values[stretch]) for stretch in stretches]
    steps = [low.steps[stretch[0]] for stretch in stretches]
    axes.fill_between(steps, bottom, top, color=COLOURS[0], alpha=0.13, lw=0)


def _extreme(which: Callable[[Floats], Any], values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(which(known)) if len(known) else float("nan")


def moving_average(values: Floats) -> Floats:
    """The mean of a centred window of a twentieth of the values (at least 5); NaN is left out."""
    half = max(2, len(values) // 40)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    total, count = sums[last] - sums[first], counts[last] - counts[first]
    return np.where(known, total / np.maximum(count, 1), np.nan)


def thin(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most MOST_POINTS of a line: lowest and highest of each stretch, so no spike is lost."""
    if len(values) <= MOST_POINTS:
        return steps, values
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(values)), MOST_POINTS // 2):
        known = stretch[np.isfinite(values[stretch])]
        if len(known) == 0:
            kept.append(int(stretch[0]))  # the gap stays a gap
            continue
        ends = {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        kept += sorted(ends)
    return steps[kept], values[kept]
