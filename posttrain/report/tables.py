"""Tables of measures, as text for a terminal and as Markdown; parts.html.j2 renders them as HTML.

A cell has its figure and, apart from it, the interval: a page shows it below the figure, a wide
terminal and the card beside it.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval import figures
from eval.measures import Change, direction, kind
from eval.stats import Measure
from posttrain.base import terminal

NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Cell:
    text: str
    full: str = ""
    """The text with its interval, for one line; empty where it is the same."""
    small: tuple[str, ...] = ()
    """Lines below the text, on a page."""
    tone: str = ""
    """`good` or `bad` where it is so beyond chance."""

    @property
    def line(self) -> str:
        return self.full or self.text


@dataclass(frozen=True)
class Column:
    head: str
    narrow: Literal["full", "text", "left out"] = "full"
    """What a terminal shows of its cells where the complete table does not fit."""
    page: bool = True

    @property
    def name(self) -> str:
        """The head without what is in brackets."""
        return self.head.partition(" (")[0]


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    """One below each column but the first, which is that of the labels."""
    group: str = ""
    """The set of problems that was scored beside the run's own rows; empty for these."""
    n: int | None = None
    note: str = ""
    """Beside the label, on a page."""

    @property
    def name(self) -> str:
        return f"{self.group}: {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: list[Row]
    title: str = ""
    """The name of a run among several."""
    capitals: bool = True
    """Labels begin with a capital letter on a page; they do not where they are names of files."""


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
    rows = []
    for name, change in changes.items():
        n = change.n or change.after.n
        cells = (
            score(name, change.before),
            score(name, change.after),
            difference(name, change),
            Cell(figures.p_value(change.p_value)),
            Cell(str(n)),
        )
        rows.append(Row(kind(name).label, cells, figures.set_label(name), n, f"n = {n}"))
    return Table(COMPARED, rows, title)


def score(name: str, measure: Measure) -> Cell:
    """A measure and its interval."""
    within = figures.interval(name, measure.low, measure.high)
    return Cell(figures.plain(name, measure.value), figures.value(name, measure), (within,))


def difference(name: str, change: Change) -> Cell:
    """A change with its interval and p-value."""
    known = change.difference is not None
    sure = (figures.span(name, change), figures.p_is(change.p_value)) if known else ()
    tone = {1: "good", 0: "", -1: "bad"}[direction(name, change)]
    moved = figures.moved(name, change.difference)
    return Cell(moved, figures.change(name, change), sure, tone)


def summary_table(measured: Mapping[str, Measure]) -> str:
    """The measures of one evaluation as aligned text."""
    columns = (Column("measure"), Column("value (95% interval)"), Column("n"))
    rows = [
        Row(figures.label(name), (score(name, measure), Cell(str(measure.n))))
        for name, measure in measured.items()
    ]
    return as_text([Table(columns, rows)])


def as_text(tables: Sequence[Table], width: int | None = None) -> str:
    """Tables of the same columns in one, at most `width` characters wide; None: as the terminal.

    Where the complete table does not fit, intervals and columns are left out as the columns say;
    where that does not fit either, each row is a sentence.
    """
    width = terminal.width() if width is None else width
    for lines in (_wide(tables), _narrow(tables)):
        if terminal.fits(lines, width):
            return "\n".join(lines)
    return "\n".join(_stacked(tables, width))


def as_markdown(table: Table) -> str:
    """A table in Markdown, without its title; empty where it has no rows."""
    if not table.rows:
        return ""
    heads = [column.head for column in table.columns]
    rows = [[row.name, *(cell.line for cell in row.cells)] for row in table.rows]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _wide(tables: Sequence[Table]) -> list[str]:
    titled = any(table.title for table in tables)
    rows = [["run"] * titled + [column.head for column in tables[0].columns]]
    for table in tables:
        for index, row in enumerate(table.rows):
            title = ["" if index else table.title] * titled
            rows.append([*title, row.name, *(cell.line for cell in row.cells)])
    return _ruled(rows)


def _narrow(tables: Sequence[Table]) -> list[str]:
    rows = [[column.head for column in tables[0].columns if column.narrow != "left out"]]
    for heading, group in _groups(tables):
        if heading:
            rows.append([heading, *[""] * (len(rows[0]) - 1)])
        rows += [[row.label, *(text for _, text in _short(tables[0], row))] for row in group]
    return _ruled(rows)


def _stacked(tables: Sequence[Table], width: int) -> list[str]:
    lines = []
    for heading, group in _groups(tables):
        lines += textwrap.wrap(heading, width)
        indent = "  " * bool(heading)
        for row in group:
            cells = [f"{n} {text}" for n, text in _short(tables[0], row) if text not in ("-", "")]
            # Lines break between cells before they break inside of one.
            text = f"{row.label}: " + ", ".join(cell.replace(" ", NO_BREAK) for cell in cells)
            wrapped = textwrap.wrap(
                text, width, initial_indent=indent, subsequent_indent="  " + indent
            )
            lines += [line.replace(NO_BREAK, " ") for line in wrapped]
    return lines


def _short(table: Table, row: Row) -> Iterator[tuple[str, str]]:
    """Column and text of each cell that a narrow table shows."""
    for column, cell in zip(table.columns[1:], row.cells, strict=True):
        if column.narrow != "left out":
            yield column.name, cell.line if column.narrow == "full" else cell.text


def _groups(tables: Sequence[Table]) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows: each run's own, then those of each set scored beside them."""
    for table in tables:
        for group in dict.fromkeys(row.group for row in table.rows):
            rows = [row for row in table.rows if row.group == group]
            counts = [row.n or 0 for row in rows]
            n = " to ".join(str(n) for n in dict.fromkeys((min(counts), max(counts))))
            heading = ", ".join(filter(None, (table.title, group)))
            yield f"{heading} (n = {n})" if heading else "", rows


def _ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned rows, the first of them the head of the columns over a rule."""
    sized = [row for row in rows if any(row[1:])]
    rule = ["-" * max(map(len, column)) for column in zip(*sized, strict=True)]
    return terminal.align([rows[0], rule, *rows[1:]])
