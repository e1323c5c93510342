"""What a person sees while it runs: on a terminal something that moves, elsewhere plain lines."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from posttrain.base.distributed import is_main

if TYPE_CHECKING:
    from rich.live import Live

BLOCKS = "▁▂▃▄▅▆▇█"
LINE_EVERY = 15.0  # seconds between two plain lines
# Set where a cell of a notebook runs the command: it has a terminal that cannot move its cursor.
NOTEBOOKS = ("COLAB_RELEASE_TAG", "JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE")


def can_redraw() -> bool:
    """Whether standard error is a terminal on which lines can be drawn again."""
    dumb = os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")
    notebook = any(name in os.environ for name in NOTEBOOKS)
    return is_main() and sys.stderr.isatty() and not dumb and not notebook


class _Lines:
    """A file for tqdm that ends each redraw with a newline, for logs and notebooks.

    On closing, a bar draws its last state again; it is printed once.
    """

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


def progress_bar(what: str, total: int, initial: int = 0, leave: bool = False) -> Any:
    """A tqdm bar that stays quiet for the first two seconds; with `leave` its end stays visible."""
    redraw = can_redraw()
    return tqdm(
        desc=what,
        total=total,
        initial=initial,
        delay=2.0,
        leave=leave,
        disable=not is_main(),
        mininterval=0.5 if redraw else LINE_EVERY,
        maxinterval=30.0,
        ncols=None if redraw else 100,
        dynamic_ncols=redraw,
        file=sys.stderr if redraw else _Lines(),
    )


class TrainingView:
    """Progress, time left, the metrics that matter, tokens a second, memory, the last health line.

    A context manager. `shown` maps the trainer's metric names to labels; the first one gets a
    sparkline. On a terminal a few lines are drawn again once a second, and their last state stays;
    elsewhere a line is printed at most every LINE_EVERY seconds, and at the end.
    """

    def __init__(self, shown: Mapping[str, str], health: Path | None = None) -> None:
        self.shown = shown
        self.health = health
        """health.jsonl, where its last event is looked for."""
        self.note = ""
        self.total, self.step, self._first = 0, 0, 0
        self._values: dict[str, float] = {}
        self.history: deque[float] = deque(maxlen=200)
        self._tokens: deque[tuple[float, float]] = deque(maxlen=10)  # (seconds, tokens so far)
        self._started = self._printed = time.monotonic()
        self._ended: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, total: int, step: int) -> None:
        """Training begins at `step` of `total`."""
        self.total, self.step, self._first = total, step, step
        self._started = self._printed = time.monotonic()
        if not can_redraw():
            return
        from posttrain.train import terminal  # its library is of no use to --help

        self._live = terminal.show(self)

    def update(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self.step = step
        if self._live is None and time.monotonic() - self._printed >= LINE_EVERY:
            self._print_line()

    def log(self, values: Mapping[str, Any]) -> None:
        """New values from the trainer; what is not shown is ignored."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._values |= {key: numbers[key] for key in self.shown if key in numbers}
        first = next(iter(self.shown), "")
        if first in numbers:
            self.history.append(numbers[first])
        self.note = last_event(self.health) if self.health is not None else ""
        if "num_tokens" in numbers:
            self._tokens.append((time.monotonic(), numbers["num_tokens"]))

    def close(self) -> None:
        """Leave the last state on the screen; a second call does nothing."""
        if self._ended is not None:
            return
        self._ended = time.monotonic()
        if self._live is not None:
            self._live.stop()
        elif self.step > self._first:
            self._print_line()

    def _print_line(self) -> None:
        if not is_main():
            return
        self._printed = time.monotonic()
        metrics = [f"{label} {value}" for label, value in self.metrics()]
        if metrics and len(self.history) > 1:
            metrics[0] += f" {sparkline(list(self.history))}"
        parts = ["  ".join(metrics), *self.machine(), self.note]
        said = " | ".join(part for part in (self.times(), *parts) if part)
        print(f"training {self.count()} | {said}", file=sys.stderr, flush=True)

    def count(self) -> str:
        """`23/40  58%`."""
        share = self.step / self.total if self.total else 1.0
        return f"{self.step}/{self.total} {share:4.0%}"

    def elapsed(self) -> float:
        """Seconds of training in this session."""
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def times(self) -> str:
        """`1:05, 0:48 left`, from the mean pace of this session."""
        elapsed, done = self.elapsed(), self.step - self._first
        if not done or self.step >= self.total or self._ended is not None:
            return clock(elapsed)
        return f"{clock(elapsed)}, {clock(elapsed / done * (self.total - self.step))} left"

    def metrics(self) -> list[tuple[str, str]]:
        """Labels and values of those metrics that were logged so far."""
        known = [(label, self._values.get(key)) for key, label in self.shown.items()]
        return [(label, f"{value:.3g}") for label, value in known if value is not None]

    def machine(self) -> list[str]:
        """Tokens a second over the last logged steps, and the memory in use."""
        parts = []
        if len(self._tokens) > 1:
            (start, few), (end, many) = self._tokens[0], self._tokens[-1]
            if end > start:
                parts.append(f"{(many - few) / (end - start):,.0f} tokens/s")
        return [*parts, memory()]


def last_event(path: Path) -> str:
    """The last event of a health.jsonl in a line; empty without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # still being written
            continue
        if isinstance(event, dict):
            return f"step {event.get('step', '?')}: {event.get('message', '')}"
    return ""


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The course of some values in `width` characters: means of equal stretches."""
    known = [value for value in values if value == value and abs(value) != float("inf")]
    if not known:
        return ""
    count = min(width, len(known))
    edges = [len(known) * place // count for place in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[3] * count
    return "".join(BLOCKS[round((m - low) / (high - low) * (len(BLOCKS) - 1))] for m in means)


def clock(seconds: float) -> str:
    """`1:05` or `2:03:09`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory() -> str:
    """Memory in use: the GPU's where there is one, else this process's."""
    import torch  # long loaded where something trains

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"GPU {(total - free) / 1e9:.1f} of {total / 1e9:.0f} GB"
    import psutil

    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
