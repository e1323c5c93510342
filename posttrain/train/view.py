"""What a person sees while it trains: on a terminal a few lines that move, elsewhere plain ones.

Of rich nothing is imported before it draws: `--help` has no use for it.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from posttrain.base import progress
from posttrain.base.distributed import is_main
from posttrain.base.files import jsonl_rows
from posttrain.base.progress import LINE_EVERY, can_redraw, duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

BLOCKS = "▁▂▃▄▅▆▇█"
GAP, FAINT = (0, 3), "bright_black"
Row = Mapping[str, Any]
"""A row of metrics.jsonl."""
# What a state line says of the mean of a metric.
SAID: dict[str, Callable[[float], str]] = {
    "reward": lambda mean: f"reward {mean:.2f}",
    "frac_reward_zero_std": lambda mean: f"{1 - mean:.0%} of groups with spread",
    "completions/clipped_ratio": lambda mean: f"{mean:.0%} cut" if mean else "none cut",
    "rewards/margins": lambda mean: f"margin {mean:.2f}",
    "rewards/accuracies": lambda mean: f"{mean:.0%} of pairs right",
}


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
        if can_redraw():
            progress.drawing = True
            self._live = _live(self)
            self._live.start(refresh=True)

    def update(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self.step = step
        if self._live is None and time.monotonic() - self._printed >= LINE_EVERY:
            self._print_line()

    def log(self, values: Row) -> None:
        """New values from the trainer; what is not shown is ignored."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._values |= {key: numbers[key] for key in self.shown if key in numbers}
        first = next(iter(self.shown), "")
        if first in numbers:
            self.history.append(numbers[first])
        self.note = "" if self.health is None else last_event(self.health)
        if "num_tokens" in numbers:
            self._tokens.append((time.monotonic(), numbers["num_tokens"]))

    def close(self) -> None:
        """Leave the last state on the screen; a second call does nothing."""
        if self._ended is not None:
            return
        self._ended = time.monotonic()
        if self._live is not None:
            self._live.stop()
            progress.drawing = False
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


def _live(view: TrainingView) -> "Live":
    """What draws the view; what is printed meanwhile appears above it."""
    from rich.console import Console
    from rich.live import Live

    class Visible(Console):
        """Never hides the cursor: a signal may end the process with no chance to bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Live(
        get_renderable=lambda: render(view),
        console=Visible(stderr=True),
        refresh_per_second=1,
        redirect_stdout=sys.stdout.isatty(),
        vertical_overflow="visible",
    )


def render(view: TrainingView) -> "RenderableType":
    """The view as it is now: bar, metrics, times and machine, last health line."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    cells = Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True)
    bar = Table.grid(*cells, padding=(0, 1), expand=True)
    drawn = ProgressBar(total=view.total, completed=view.step, style=FAINT, finished_style="green")
    bar.add_row(Text("training", style="bold"), drawn, Text(view.count(), style="bold"))
    lines: list[RenderableType] = [bar]
    metrics = [Text.assemble((f"{label} ", FAINT), value) for label, value in view.metrics()]
    if metrics and len(view.history) > 1:
        metrics[0].append(f" {sparkline(list(view.history))}", style="cyan")
    lines += [Columns(metrics, GAP)] if metrics else []
    times = view.times() if view.step < view.total else f"{duration(view.elapsed())} in all"
    lines.append(Columns([Text(times), *(Text(part, style=FAINT) for part in view.machine())], GAP))
    if view.note:
        lines.append(Text(view.note, style="yellow", overflow="ellipsis", no_wrap=True))
    return Group(*lines)


def last_event(path: Path) -> str:
    """The last event of a health.jsonl in a line; empty without one."""
    last = (jsonl_rows(path, []) if path.is_file() else [])[-1:]
    return "".join(f"step {row.get('step', '?')}: {row.get('message', '')}" for row in last)


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


def state_line(rows: Sequence[Row], max_steps: int) -> str:
    """The state at the last row, of `rows` since the line before; the first row counts as its end.

    Metrics are means over the rows, so that one lucky batch is no news.
    """
    first, last = rows[0], rows[-1]
    said = []
    for name, words in SAID.items():
        values = [row[name] for row in rows[1:] or rows if row.get(name) is not None]
        said += [words(sum(values) / len(values))] if values else []
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    if steps > 0 and seconds > 0:
        tokens = (last.get("num_tokens") or 0) - (first.get("num_tokens") or 0)
        if tokens > 0:
            said.append(f"{tokens / seconds:,.0f} tokens/s")
        if last["step"] < max_steps:
            said.append(f"{duration((max_steps - last['step']) * seconds / steps)} left")
    return f"step {last['step']}/{max_steps}: {', '.join(said)}"
