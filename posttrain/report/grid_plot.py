"""The plot of the values that a repeat tried. Loads matplotlib: see drawing.py."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from posttrain.report.drawing import COLOURS, INK, MUTED, Plot, percent_axis
from posttrain.run import measures


def validation_by_value(found: Mapping[str, Any]) -> Plot:
    """Every seed's validation as a point, their mean as a bar, a row a value that was trained."""
    name = found["by"]
    rows = [row for row in found["values"] if "mean" in row]
    label = measures.label(name)
    said = "; ".join(f"{row['label']} {measures.plain(name, row['mean'])}" for row in rows)

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            colour = COLOURS[0] if row["name"] == found["chosen"] else MUTED
            axes.plot(row["values"], [place] * len(row["values"]), "o", color=colour, ms=7, mew=0,
                      alpha=0.55)  # fmt: skip
            axes.plot(row["mean"], place, "|", color=colour, ms=20, mew=2.4)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        if measures.is_share(name):
            percent_axis(axes, "x")

    about = (
        f"{label[0].upper()}{label[1:]} of the step that was kept. A point a seed, a bar their "
        "mean; in colour the value that was chosen."
    )
    return Plot("grid", "Validation by value", about, f"{label} by value: {said}.", label, draw,
                height=0.9 + 0.46 * len(rows))  # fmt: skip
