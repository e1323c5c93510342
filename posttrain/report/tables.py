"""Tables of measures, before and after training or of one evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import figures
from eval.measures import Change, direction, kind
from eval.stats import Measure
from posttrain.report.rows import Cell, Column, Row, Table, as_text
from posttrain.run.reading import read_runs

TONES = {1: "good", 0: "", -1: "bad"}
COMPARED = (
    Column("measure"),
    Column("before", "text"),
    Column("after", "text"),
    Column("change (95% interval)"),
    Column("p-value", page=False),
    Column("n", "left out", page=False),
)


def compared(changes: Mapping[str, Change], title: str = "") -> Table:
    """Measures before and after training, one a row."""
    rows = [
        Row(
            kind(name).label,
            (
                score(name, change.before),
                score(name, change.after),
                difference(name, change),
                Cell(figures.p_value(change.p_value)),
                Cell(str(change.n or change.after.n)),
            ),
            group=figures.set_label(name),
            n=change.n or change.after.n,
            note=f"n = {change.n or change.after.n}",
        )
        for name, change in changes.items()
    ]
    return Table(COMPARED, rows, title)


def score(name: str, measure: Measure) -> Cell:
    """A measure and its interval."""
    within = figures.interval(name, measure.low, measure.high)
    return Cell(figures.plain(name, measure.value), figures.value(name, measure), (within,))


def difference(name: str, change: Change) -> Cell:
    """A change with its interval and p-value."""
    known = change.difference is not None
    sure = (figures.span(name, change), figures.p_is(change.p_value)) if known else ()
    moved = figures.moved(name, change.difference)
    return Cell(moved, figures.change(name, change), sure, TONES[direction(name, change)])


def table(comparisons: Sequence[tuple[str, Mapping[str, Change]]], width: int | None = None) -> str:
    """Named comparisons in one table, as `as_text` renders it."""
    return as_text([compared(changes, name) for name, changes in comparisons], width)


def comparison_table(runs: Sequence[Path]) -> str:
    """One table over all runs: each measure before and after, with 95% intervals and p-value."""
    return table([(run.name, run.changes()) for run in read_runs(runs, finished=True)])


def summary_table(measured: Mapping[str, Measure]) -> str:
    """The measures of one evaluation as aligned text."""
    columns = (Column("measure"), Column("value (95% interval)"), Column("n"))
    rows = [
        Row(figures.label(name), (score(name, measure), Cell(str(measure.n))))
        for name, measure in measured.items()
    ]
    return as_text([Table(columns, rows)])
