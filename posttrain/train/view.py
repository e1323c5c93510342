"""What a person sees while it trains: on a terminal a few lines that move, elsewhere plain ones."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from posttrain.base.distributed import is_main
from posttrain.base.files import jsonl_rows
from posttrain.base.progress import LINE_EVERY, can_redraw, duration

if TYPE_CHECKING:
    from rich.live import Live

BLOCKS = "▁▂▃▄▅▆▇█"


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
        """`1 min 05 s, 48 s left`, from the mean pace of this session."""
        elapsed, done = self.elapsed(), self.step - self._first
        if not done or self.step >= self.total or self._ended is not None:
            return duration(elapsed)
        return f"{duration(elapsed)}, {duration(elapsed / done * (self.total - self.step))} left"

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
    events = jsonl_rows(path, []) if path.is_file() else []
    if not events:
        return ""
    return f"step {events[-1].get('step', '?')}: {events[-1].get('message', '')}"


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


def memory() -> str:
    """Memory in use: the GPU's where there is one, else this process's."""
    import torch  # long loaded where something trains

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"GPU {(total - free) / 1e9:.1f} of {total / 1e9:.0f} GB"
    import psutil

    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
