"""The before/after table as text, in lines that fit the terminal."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.base import terminal
from posttrain.run import measures
from posttrain.run.record import read_runs

Comparison = Mapping[str, Mapping[str, Any]]


def comparison_table(runs: Sequence[Path]) -> str:
    """One table over all runs: each measure before and after, with 95% intervals and p-value."""
    records = read_runs(runs, finished=True)
    return table([(found.name, found.measures()) for found in records])


def table(comparisons: Sequence[tuple[str, Comparison]], width: int | None = None) -> str:
    """Named comparisons as aligned text of at most `width` columns; None: those of the terminal.

    Where the whole table does not fit, the intervals of before and after are left out, and where
    that does not either each measure takes two lines.
    """
    width = terminal.width() if width is None else width
    for layout in (_whole, _without_intervals):
        lines = layout(comparisons)
        if terminal.fits(lines, width):
            return "\n".join(lines)
    return "\n".join(_stacked(comparisons, width))


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


def _whole(comparisons: Sequence[tuple[str, Comparison]]) -> list[str]:
    return ruled(table_rows(comparisons))


def _without_intervals(comparisons: Sequence[tuple[str, Comparison]]) -> list[str]:
    rows = [("measure", "before", "after", "change (95% interval)", "p-value")]
    for heading, group in _groups(comparisons):
        rows.append((heading, "", "", "", ""))
        for name, values in group.items():
            rows.append(
                (
                    measures.label(name),
                    *_sides(name, values),
                    measures.change(name, values),
                    measures.p_value(values.get("p_value")),
                )
            )
    return ruled(rows)


def _stacked(comparisons: Sequence[tuple[str, Comparison]], width: int) -> list[str]:
    lines = []
    for heading, group in _groups(comparisons):
        lines += textwrap.wrap(heading, width)
        for name, values in group.items():
            before, after = _sides(name, values)
            said = f"{measures.label(name)}: {before} -> {after}"
            lines += textwrap.wrap(said, width, initial_indent="  ", subsequent_indent="    ")
            if values.get("difference") is None:
                continue
            sure = f"{measures.change(name, values)}, {measures.p_is(values.get('p_value'))}"
            lines += textwrap.wrap(sure, width, initial_indent="    ", subsequent_indent="    ")
    return lines


def _sides(name: str, values: Mapping[str, Any]) -> tuple[str, str]:
    before, after = (measures.plain(name, values[s].get("value")) for s in ("before", "after"))
    return before, after


def _groups(comparisons: Sequence[tuple[str, Comparison]]) -> Iterator[tuple[str, Comparison]]:
    """A heading and its measures: each run's own, then those of each set scored beside them."""
    for run, comparison in comparisons:
        groups: dict[str, dict[str, Mapping[str, Any]]] = {}
        for name, values in comparison.items():
            of, _, own = name.rpartition("/")
            groups.setdefault(of, {})[own] = values
        for of, group in groups.items():
            counts = sorted({values.get("n") or 0 for values in group.values()})
            n = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
            yield f"{run}{f', {measures.set_label(of)}' if of else ''} (n = {n})", group


def summary_table(found: Comparison) -> str:
    """The measures of one evaluation as aligned text."""
    rows = [("measure", "value (95% interval)", "n")]
    for name, measure in found.items():
        rows.append(
            (measures.label(name), measures.value(name, measure), str(measure.get("n", "-")))
        )
    lines = ruled(rows)
    if terminal.fits(lines):
        return "\n".join(lines)
    return "\n".join(f"{label}\n  {value}, n = {n}" for label, value, n in rows[1:])


def ruled(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned rows, the first of them the head of the columns over a rule."""
    sized = [row for row in rows if any(row[1:])]
    rule = tuple("-" * max(map(len, column)) for column in zip(*sized, strict=True))
    return terminal.align([rows[0], rule, *rows[1:]])
