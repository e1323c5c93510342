"""Progress: a bar on a terminal that can redraw it, elsewhere plain lines; a clock; durations.

Only this module imports tqdm, so that no pipe or log file gets cursor codes.
"""

import os
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY = 15.0  # seconds between two plain lines
# Set where a cell of a notebook runs the command: it has a terminal that cannot move its cursor.
NOTEBOOKS = ("COLAB_RELEASE_TAG", "JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE")


def can_redraw() -> bool:
    """Whether standard error is a terminal on which lines can be drawn again."""
    dumb = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
    notebook = any(name in os.environ for name in NOTEBOOKS)
    return sys.stderr.isatty() and not dumb and not notebook


class _Lines:
    """A file for tqdm, in logs: each redraw ends with a newline, and the last is printed once."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        before, _, after = line.partition("|")
        state = before + after.partition("[")[0].rpartition("|")[2]  # without bar and times
        if line and not ("100%" in state and state == self._last):
            print(line, file=sys.stderr)
            self._last = state

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    what: str, total: int | None, initial: int = 0, leave: bool = False, in_logs: bool = True
) -> Any:
    """A tqdm bar that stays quiet for the first two seconds; with `leave` its end stays visible.
    One may run inside another: on a terminal it is drawn below it, `in_logs` both print lines."""
    redraw = can_redraw()
    return tqdm(
        desc=what,
        total=total,
        initial=initial,
        delay=2.0,
        leave=leave,
        disable=not (redraw or in_logs),
        mininterval=0.5 if redraw else LINE_EVERY,
        maxinterval=30.0,
        ncols=None if redraw else 100,
        dynamic_ncols=redraw,
        position=None if redraw else 0,  # tqdm moves the cursor to any other position
        file=sys.stderr if redraw else _Lines(),
    )


def say(line: str) -> None:
    """Print a line on stdout, above the progress bar if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Clock:
    """Seconds since a run started, for metrics; `before` is what it took before it was resumed."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)


def duration(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
