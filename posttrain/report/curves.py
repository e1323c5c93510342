"""Curves over steps: read from metrics, and smoothed. Loads matplotlib: see drawing.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from posttrain.report.drawing import COLOURS, MUTED
from posttrain.run.record import Run, number

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Values of one metric over steps; a gap is NaN."""

    label: str
    steps: Floats
    values: Floats


def metrics(run: Run, wanted: Mapping[str, str]) -> list[Line]:
    """The metrics of `{key: label}` that hold at least one finite number."""
    lines = []
    for key, label in wanted.items():
        rows = [row for row in run.metrics if key in row and number(row.get("step")) is not None]
        values = floats(row[key] for row in rows)
        if np.isfinite(values).any():
            lines.append(Line(label, floats(row["step"] for row in rows), values))
    return lines


def floats(values: Iterable[object]) -> Floats:
    """Any values as numbers; what is not a finite number is NaN."""
    return np.array([number(value) for value in values], dtype=np.float64)  # None becomes NaN


def describe(title: str, lines: Sequence[Line], share: bool) -> str:
    """`Reward: total from 0.9 at step 1 to 2.9 at step 40.`"""
    ends = []
    for line in lines:
        known = np.flatnonzero(np.isfinite(line.values))
        first, last = (
            f"{line.values[index]:{'.0%' if share else '.3g'}} at step {line.steps[index]:.0f}"
            for index in (int(known[0]), int(known[-1]))
        )
        ends.append(f"{line.label} from {first} to {last}")
    return f"{title}: {'; '.join(ends)}."


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line as it was measured, faint, and its moving average."""
    for line, colour in zip(lines, COLOURS * 3, strict=False):
        if np.isfinite(line.values).sum() < 8:
            axes.plot(line.steps, line.values, "o-", color=colour, ms=4, lw=1.6, label=line.label)
        else:
            axes.plot(line.steps, line.values, color=colour, lw=0.9, alpha=0.4)
            smooth = moving_average(line.values)
            axes.plot(line.steps, smooth, color=colour, lw=2.0, label=line.label)


def draw_band(axes: Axes, steps: Floats, low: Floats, high: Floats) -> None:
    """The area between the lowest and the highest value."""
    axes.fill_between(steps, low, high, color=COLOURS[0], alpha=0.13, lw=0)


def draw_mark(axes: Axes, text: str, step: float | None = None, value: float | None = None) -> None:
    """A dashed line with its name, across the plot at a step or at a value."""
    style: dict[str, Any] = {"color": MUTED, "lw": 1, "ls": (0, (4, 3))}
    named: dict[str, Any] = {"ha": "right", "va": "bottom", "textcoords": "offset points"}
    if step is not None:
        axes.axvline(step, **style)
        named |= {"xy": (step, 0.02), "xycoords": ("data", "axes fraction"), "xytext": (-3, 0)}
    if value is not None:
        axes.axhline(value, **style)
        named |= {"xy": (0.995, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 2)}
    axes.annotate(text, color=MUTED, **named)


def moving_average(values: Floats) -> Floats:
    """The mean of a centred window of a twentieth of the values (at least 5); NaN is left out."""
    known = np.isfinite(values)
    window = np.ones(2 * max(2, len(values) // 40) + 1)
    total = np.convolve(np.where(known, values, 0.0), window, "same")
    return np.where(known, total / np.maximum(np.convolve(known, window, "same"), 1), np.nan)
