"""Runs that end early: a signal, or `run.max_minutes` is over."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from posttrain.base import distributed


class StepAbandoned(BaseException):
    """A signal came in the middle of a step that need not be finished.

    Not an Exception, so that no library takes it for a failure of its own.
    """


class StopRequest:
    """Why a run should end at its next safe point: a signal, or its time is up.

    As a context manager it listens for SIGINT, SIGTERM and, unless it was told not to mind (nohup),
    SIGHUP: the terminal was closed. A second SIGINT or SIGTERM ends the process at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.exit_code: int | None = None
        """Exit code to leave with once a stop was asked for, else None."""
        self.reason = ""
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._earlier: dict[int, Any] = {}
        self._abandoning = False

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) == signal.SIG_DFL:
                self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self.reason = signal.Signals(number).name
        print(
            f"\n{self.reason}: writing a checkpoint; once more stops at once",
            flush=True,
        )
        for each in self._earlier:  # a terminal that closes says so twice: by its shell and itself
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        if self._abandoning:
            self._abandoning = False
            raise StepAbandoned

    @contextlib.contextmanager
    def abandoning(self, allowed: bool) -> Iterator[None]:
        """Where `allowed`, a signal ends what is done inside at once, with StepAbandoned."""
        self._abandoning = allowed
        try:
            if allowed and self.exit_code is not None:  # it came between two steps
                raise StepAbandoned
            yield
        finally:
            self._abandoning = False

    def wanted(self) -> bool:
        """Whether to stop; looks at the clock too. Several processes stop at the same step: all of
        them must ask after every step, and one that wants to is enough."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self.exit_code is None and late:
            self.exit_code, self.reason = 0, "run.max_minutes is over"
        agreed = distributed.highest(-1 if self.exit_code is None else self.exit_code)
        if self.exit_code is None and agreed >= 0:
            self.exit_code, self.reason = agreed, "another process stopped"
        return self.exit_code is not None
