"""Stop a run early: on a signal, or when `run.max_minutes` is over."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StepAbandoned(BaseException):
    """Ends a training step in the middle, because a signal came; a resumed run repeats the step. It
    is not an Exception, so that no library catches it."""


class StopRequest:
    """Notes that a run has to stop, and why; checked after every step.

    As a context manager it handles SIGINT, SIGTERM and SIGHUP (the terminal was closed). SIGHUP
    stays ignored under nohup. A second SIGINT or SIGTERM ends the process at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.exit_code: int | None = None  # of the process, once the run has to stop
        self.reason = ""
        self.decided = False  # the run had to stop when `wanted` was last called
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._old_handlers: dict[int, Any] = {}
        self._interruptible = False

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) == signal.SIG_DFL:
                self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self.reason = signal.Signals(number).name
        print(f"\n{self.reason}: writing a checkpoint; a second one stops at once", flush=True)
        # A terminal that closes sends SIGHUP twice, once through its shell: the second is ignored.
        for each in self._old_handlers:
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        if self._interruptible:
            self._interruptible = False
            raise StepAbandoned

    @contextlib.contextmanager
    def interruptible(self, allowed: bool) -> Iterator[None]:
        """If `allowed`, a signal raises StepAbandoned inside this block at once."""
        self._interruptible = allowed
        try:
            if allowed and self.exit_code is not None:  # the signal came between two steps
                raise StepAbandoned
            yield
        finally:
            self._interruptible = False

    def wanted(self) -> bool:
        """Whether the run has to stop, by a signal or the time limit."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self.exit_code is None and late:
            self.exit_code, self.reason = 0, "run.max_minutes is over"
        self.decided = self.exit_code is not None
        return self.decided
