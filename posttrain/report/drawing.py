"""How plots are drawn: one look, as PNG files and as SVG that takes its colours from the page.

Importing this loads matplotlib, which takes a second: only what draws may import it.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#dde2e8"
# What the page may colour otherwise, in the dark for example.
VARIABLES = {
    **{colour: f"var(--series-{place})" for place, colour in enumerate(COLOURS, start=1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    "#ffffff": "var(--card)",
}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 11.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a reward may be called anything
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
WIDTH = 4.8  # inches; at 72 points an inch, text of 11.5 stays readable on a phone
ROUND = (1, 2, 2.5, 5, 10)  # what ticks may be multiples of
MOST_POINTS = 300  # of a drawn line
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """Values of one metric over steps; a gap is NaN."""

    label: str
    steps: Floats
    values: Floats


@dataclass(frozen=True)
class Plot:
    name: str
    """Of its file, without the ending."""
    title: str
    about: str
    """What it shows and what to look for, for the caption."""
    alt: str
    """What a reader who cannot see it should know."""
    unit: str
    """Of the vertical axis, written above it."""
    draw: Callable[[Axes], None]
    height: float = 2.65
    """Inches, without the title."""
    left: float = 0.14
    """Share of the width left of the axis, for its labels."""


def render_svg(plot: Plot) -> str:
    """The plot as an <svg> element without title, to stand inside a page."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.name}):
        figure, file = _figure(plot, titled=False), StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(file.getvalue(), plot.alt)


def render_png(plot: Plot) -> bytes:
    """The plot with its title, as a PNG about 1,000 pixels wide on white."""
    with matplotlib.rc_context(STYLE):
        figure, file = _figure(plot, titled=True), BytesIO()
        figure.savefig(file, format="png", dpi=210, facecolor="white")
    return file.getvalue()


def _figure(plot: Plot, titled: bool) -> Figure:
    height = plot.height + (0.35 if titled else 0)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes(
        (plot.left, 0.54 / height, 0.97 - plot.left, (plot.height - 0.9) / height)
    )
    plot.draw(axes)
    top = (plot.height - 0.16) / height
    if plot.unit:
        figure.text(0.012, top, plot.unit, color=MUTED, va="center")
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles,
            labels,
            loc="center right",
            bbox_to_anchor=(0.985, top),
            ncols=len(labels),
            borderpad=0,
            borderaxespad=0,
            columnspacing=1.1,
            handlelength=1.1,
            handletextpad=0.45,
            labelcolor=INK,
        )
    if titled:
        figure.text(0.012, 1 - 0.19 / height, plot.title, weight="bold", size=13.5, va="center")
    return figure


def _for_page(svg: str, alt: str) -> str:
    """Matplotlib's file as an element of a page: sized, coloured and lettered by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z]+[\w.]*_\d+"', "", svg)  # of groups; every plot has the same
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'"[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m.group()), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    said = html.escape(alt, quote=True)
    return f'<svg {box.group() if box else ""} role="img" aria-label="{said}">{body.strip()}'


def over_steps(axes: Axes, share_of: float | None = None) -> None:
    """Steps along the bottom; with `share_of` the other axis is in percent from 0 to that share."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    axes.grid(visible=False, axis="x")
    if share_of is None:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    else:
        percent_axis(axes, "y", share_of)


def percent_axis(axes: Axes, which: str, top: float = 1.0) -> None:
    """The axis `x` or `y` in percent, from 0 to `top`, with room for a line on either edge."""
    axis, limits = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    axis.set_major_formatter(PercentFormatter(1.0))
    axis.set_major_locator(MaxNLocator(5, steps=ROUND))
    limits(-0.025 * top, 1.025 * top)


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
