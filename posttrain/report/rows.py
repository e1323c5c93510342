"""A table as rows of cells, and two of its three renderers: text for a terminal, and Markdown.

The third is the macro `table` of parts.html.j2. A cell has its figure and, apart from it, what says
how sure that is: a page shows it below the figure, a wide terminal and the card beside it.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Column:
    head: str
    narrow: Literal["full", "text", "left out"] = "full"
    """What a terminal shows of its cells where the complete table does not fit."""
    page: bool = True


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


def as_text(tables: Sequence[Table], width: int | None = None) -> str:
    """Tables of the same columns in one, at most `width` characters wide; None: as the terminal.

    Where all of it does not fit, the intervals of a cell are left out where its column says so, and
    where that does not fit either, each row becomes a few lines.
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
    rows = [[row.name, *(cell.full or cell.text for cell in row.cells)] for row in table.rows]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _wide(tables: Sequence[Table]) -> list[str]:
    titled = any(table.title for table in tables)
    rows = [["run"] * titled + [column.head for column in tables[0].columns]]
    for table in tables:
        for number, row in enumerate(table.rows):
            title = [table.title if number == 0 else ""] * titled
            rows.append([*title, row.name, *(cell.full or cell.text for cell in row.cells)])
    return _ruled(rows)


def _narrow(tables: Sequence[Table]) -> list[str]:
    columns = tables[0].columns
    rows = [[column.head for column in columns if column.narrow != "left out"]]
    for heading, group in _groups(tables):
        if heading:
            rows.append([heading, *[""] * (len(rows[0]) - 1)])
        for row in group:
            rows.append([row.label, *(text for _, text in _short(columns, row))])
    return _ruled(rows)


def _stacked(tables: Sequence[Table], width: int) -> list[str]:
    lines = []
    for heading, group in _groups(tables):
        lines += textwrap.wrap(heading, width)
        indent = "  " * bool(heading)
        wrapper = textwrap.TextWrapper(width, indent, subsequent_indent=f"{indent}  ")
        for row in group:
            cells = [
                f"{head.partition(' (')[0]} {text}"
                for head, text in _short(tables[0].columns, row)
                if text not in ("-", "")
            ]
            # Lines break between cells before they break inside of one.
            text = f"{row.label}: " + ", ".join(cell.replace(" ", NO_BREAK) for cell in cells)
            lines += [line.replace(NO_BREAK, " ") for line in wrapper.wrap(text)]
    return lines


def _short(columns: Sequence[Column], row: Row) -> Iterator[tuple[str, str]]:
    """Head and text of each cell that a narrow table shows."""
    for column, cell in zip(columns[1:], row.cells, strict=True):
        if column.narrow != "left out":
            full = column.narrow == "full" and cell.full
            yield column.head, full or cell.text


def _groups(tables: Sequence[Table]) -> Iterator[tuple[str, list[Row]]]:
    """A heading and its rows: each run's own, then those of each set scored beside them."""
    for table in tables:
        groups: dict[str, list[Row]] = {}
        for row in table.rows:
            groups.setdefault(row.group, []).append(row)
        for group, rows in groups.items():
            counts = sorted({row.n or 0 for row in rows})
            n = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
            heading = ", ".join(filter(None, (table.title, group)))
            yield f"{heading} (n = {n})" if heading else "", rows


def _ruled(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned rows, the first of them the head of the columns over a rule."""
    sized = [row for row in rows if any(row[1:])]
    rule = ["-" * max(map(len, column)) for column in zip(*sized, strict=True)]
    return terminal.align([rows[0], rule, *rows[1:]])
