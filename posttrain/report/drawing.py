"""How plots are drawn: one look, as PNG files and as SVG that takes its colours from the page.

Importing this loads matplotlib, which takes a second: only what draws may import it.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which colour-blind readers can distinguish (https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#dde2e8"
# What the page may colour differently, in the dark for example.
VARIABLES = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(COLOURS, start=1)},
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
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.1,
    "legend.handlelength": 1.1,
    "legend.handletextpad": 0.45,
    "legend.labelspacing": 0.3,
    "legend.labelcolor": INK,
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
EDGE = 0.012  # share of the width that is left free on either side
LEFT, RIGHT = 0.14, 0.97  # of the axis, in shares of the width, where its labels leave that
LEGEND_LINE = 0.22  # inches
ROUND = (1, 2, 2.5, 5, 10)  # what ticks may be multiples of


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
    """Inches, without the title and without further lines of the legend."""


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
    figure = Figure(figsize=(WIDTH, plot.height))
    axes = figure.add_axes((LEFT, 0.2, RIGHT - LEFT, 0.6))
    plot.draw(axes)
    unit = figure.text(EDGE, 0.9, plot.unit, color=MUTED, va="center")
    taken = unit.get_window_extent().x1 / figure.bbox.width if plot.unit else EDGE
    legend, lines = _legend(figure, axes, 1 - EDGE - taken - 0.03)
    more = LEGEND_LINE * (lines - 1)
    height = plot.height + more + (0.35 if titled else 0)
    figure.set_figheight(height)
    bottom = 0.54 if axes.get_xlabel() else 0.34
    axes.set_position((LEFT, bottom / height, RIGHT - LEFT, (plot.height - 0.36 - bottom) / height))
    top = (plot.height + more - 0.16) / height
    unit.set_y(top)
    if legend is not None:
        legend.set_bbox_to_anchor((1 - EDGE, top + 0.09 / height))
    if titled:
        figure.text(EDGE, 1 - 0.19 / height, plot.title, weight="bold", size=13.5, va="center")
    _make_room(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes, room: float) -> tuple[Legend | None, int]:
    """A legend in as many columns as fit `room`, a share of the width, and the lines it takes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return None, 1
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(handles, labels, loc="upper right", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= room * figure.bbox.width:
            break
        legend.remove()
    return legend, -(-len(labels) // columns)


def _make_room(figure: Figure, axes: Axes) -> None:
    """Move the axis so that its labels, whose width is only known once drawn, stay inside."""
    labels = axes.get_tightbbox()
    assert labels is not None  # the axes are visible
    labels, box = labels.transformed(figure.transFigure.inverted()), axes.get_position()
    left = box.x0 + max(0.0, 2 * EDGE - labels.x0)
    right = box.x1 - max(0.0, labels.x1 - (1 - EDGE))
    axes.set_position((left, box.y0, right - left, box.height))


def _for_page(svg: str, alt: str) -> str:
    """Matplotlib's file as an element of a page: sized, coloured and lettered by the page."""
    unused = r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|font-family: [^;\"]*;"
    ids = r' id="[a-zA-Z]+[\w.]*_\d+"'  # of groups; every plot has the same
    svg = re.sub(f"{unused}|{ids}", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'"[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m.group()), svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    label = html.escape(alt, quote=True)
    return f'<svg {box.group() if box else ""} role="img" aria-label="{label}">{body.strip()}'


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


def short(name: str, most: int = 16) -> str:
    """A name that fits a legend."""
    name = name.replace("_", " ")
    return name if len(name) <= most else f"{name[: most - 1]}…"
