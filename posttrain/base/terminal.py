"""Text that fits the terminal: its width, columns that line up, and labelled lines that wrap."""

import shutil
import textwrap
from collections.abc import Sequence

PROSE = 100  # columns; longer lines of text are hard to read, however wide the terminal


def width() -> int:
    """Columns of the terminal, or $COLUMNS where it is set; 40 at least. 80 where neither is known,
    as of a file: it will be read on some terminal."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def prose_width() -> int:
    """Columns for sentences and labelled lines."""
    return min(PROSE, width())


def entry(label: str, value: str, label_width: int = 24) -> str:
    """`  label   value`, the value wrapped below itself."""
    return textwrap.fill(
        value,
        prose_width(),
        initial_indent=f"  {label:<{label_width}}",
        subsequent_indent=" " * (label_width + 2),
    )


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns two spaces apart; a row with a first cell alone is as long as it likes."""
    sized = [row for row in rows if any(row[1:])] or rows
    widths = [max(map(len, column)) for column in zip(*sized, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def fits(lines: Sequence[str], columns: int | None = None) -> bool:
    """Whether no line is longer than that, or than the terminal is wide."""
    return max(map(len, lines), default=0) <= (width() if columns is None else columns)
