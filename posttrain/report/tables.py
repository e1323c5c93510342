"""The before/after table as text, as wide as the terminal lets it be."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.report import measures
from posttrain.report.record import read_run

Comparison = Mapping[str, Mapping[str, Any]]


def comparison_table(runs: Sequence[Path]) -> str:
    """One table over all runs: each measure before and after, with 95% intervals and p-value."""
    records = [read_run(run, finished=True) for run in runs]
    return table([(found.name, found.measures()) for found in records])


def table(comparisons: Sequence[tuple[str, Comparison]], width: int | None = None) -> str:
    """Named comparisons as aligned text of at most `width` columns; None: those of the terminal.

    Where the whole table does not fit, the intervals of before and after are left out, and in a
    very narrow one each measure takes two lines. Without a terminal nothing is left out.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    for layout in (_whole, _without_intervals):
        text = layout(comparisons)
        if width is None or max(map(len, text.splitlines())) <= width:
            return text
    return _stacked(comparisons)


def table_rows(comparisons: Sequence[tuple[str, Comparison]]) -> list[tuple[str, ...]]:
    """Named comparisons as cells of text: a head, then a row a measure."""
    rows: list[tuple[str, ...]] = [
        ("run", "measure", "before", "after", "change (95% interval)", "p-value", "n")
    ]
    for run, comparison in comparisons:
        for number, (name, values) in enumerate(comparison.items()):
            rows.append(
                (
                    run if number == 0 else "",
                    measures.label(name),
                    measures.value(name, values["before"]),
                    measures.value(name, values["after"]),
                    measures.change(name, values),
                    measures.p_value(values.get("p_value")),
                    str(values.get("n", "-")),
                )
            )
    return rows


def _whole(comparisons: Sequence[tuple[str, Comparison]]) -> str:
    return _align(table_rows(comparisons))


def _without_intervals(comparisons: Sequence[tuple[str, Comparison]]) -> str:
    rows = [("measure", "before", "after", "change (95% interval)", "p-value")]
    for run, comparison in comparisons:
        rows.append((_heading(run, comparison), "", "", "", ""))
        for name, values in comparison.items():
            rows.append(
                (
                    measures.label(name),
                    measures.plain(name, values["before"].get("value")),
                    measures.plain(name, values["after"].get("value")),
                    measures.change(name, values),
                    measures.p_value(values.get("p_value")),
                )
            )
    return _align(rows)


def _stacked(comparisons: Sequence[tuple[str, Comparison]]) -> str:
    lines = []
    for run, comparison in comparisons:
        lines.append(_heading(run, comparison))
        for name, values in comparison.items():
            before, after = (
                measures.plain(name, values[s].get("value")) for s in ("before", "after")
            )
            lines.append(f"  {measures.label(name)}: {before} -> {after}")
            lines.append(f"    {measures.change(name, values)}")
    return "\n".join(lines)


def _heading(run: str, comparison: Comparison) -> str:
    counts = sorted({values.get("n") or 0 for values in comparison.values()})
    if not counts:
        return run
    return f"{run} (n = {' to '.join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))})"


def summary_table(found: Comparison) -> str:
    """The measures of one evaluation as aligned text."""
    rows = [("measure", "value (95% interval)", "n")]
    for name, measure in found.items():
        rows.append(
            (measures.label(name), measures.value(name, measure), str(measure.get("n", "-")))
        )
    return _align(rows)


def _align(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns two spaces apart under a rule; a row with a first cell alone is a heading."""
    sized = [row for row in rows if any(row[1:])]
    widths = [max(len(row[i]) for row in sized) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
