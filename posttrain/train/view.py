"""What a person sees while it trains: a line every few steps, and on a terminal a progress bar."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from posttrain.base.progress import LINE_EVERY, duration, progress_bar, say

FORMAT = "{desc} {percentage:3.0f}%| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class TrainingView:
    """Progress, time left, the metrics that matter, tokens a second and memory.

    A context manager. `shown` maps the trainer's metric names to labels. Every `every` steps, and
    after the last one, a line is printed that stays; in a log, without a bar, at least every 15 s.
    """

    def __init__(self, shown: Mapping[str, str], every: int | None = None) -> None:
        self.shown = shown
        self.every = every
        self.bar: Any = None
        self.step = self._first = 0
        self._values: dict[str, float] = {}
        self._tokens: deque[tuple[float, float]] = deque(maxlen=10)  # (seconds, tokens so far)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def start(self, total: int, step: int) -> None:
        """Training begins at `step` of `total`."""
        self.step = self._first = step
        self._started = self._printed = time.monotonic()
        self.bar = progress_bar("training", total, initial=step, leave=True, in_logs=False)
        self.bar.bar_format = FORMAT

    def log(self, values: Mapping[str, Any]) -> None:
        """New values from the trainer; what is not shown is ignored."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        self._values |= {key: numbers[key] for key in self.shown if key in numbers}
        if "num_tokens" in numbers:
            self._tokens.append((time.monotonic(), numbers["num_tokens"]))

    def update(self, step: int) -> None:
        """`step` optimizer steps are done."""
        earlier, self.step = self.step, step
        total, state, now = self.bar.total, self.state(), time.monotonic()
        self.bar.set_postfix_str(state, refresh=False)
        self.bar.update(step - earlier)
        due = step == total or (self.bar.disable and now - self._printed >= LINE_EVERY)
        if step > earlier and (due or (self.every and step // self.every > earlier // self.every)):
            self._printed = now
            if step < total:
                pace = (now - self._started) / (step - self._first)
                state += f", {duration(pace * (total - step))} left"
            say(f"step {step}/{total}: {state}")

    def state(self) -> str:
        """`reward 2.93, std 0.41, 6,273 tokens/s, 3.1 GB`."""
        known = ((label, self._values.get(key)) for key, label in self.shown.items())
        parts = [f"{label} {value:.3g}" for label, value in known if value is not None]
        if len(self._tokens) > 1:
            (start, few), (end, many) = self._tokens[0], self._tokens[-1]
            if end > start:
                parts.append(f"{(many - few) / (end - start):,.0f} tokens/s")
        return ", ".join([*parts, memory()])


def memory() -> str:
    """Memory in use: the GPU's if there is one, else this process's."""
    import torch  # long loaded where something trains

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"GPU {(total - free) / 1e9:.1f} of {total / 1e9:.0f} GB"
    import psutil

    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
