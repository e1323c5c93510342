"""Progress bars: one line redrawn on a terminal, a plain line now and then anywhere else."""

import sys
from typing import Any

from tqdm import tqdm


class _Lines:
    """A file for tqdm that ends each redraw with a newline, for logs and notebooks."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(what: str, total: int, initial: int = 0, leave: bool = False) -> Any:
    """A tqdm bar that stays quiet for the first two seconds; with `leave` its end stays visible."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        initial=initial,
        delay=2.0,
        leave=leave,
        mininterval=0.5 if on_terminal else 15.0,
        maxinterval=30.0,
        ncols=None if on_terminal else 100,
        file=sys.stderr if on_terminal else _Lines(),
    )
