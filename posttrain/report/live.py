"""The page of a run, drawn while it trains and at its end."""

import time
from pathlib import Path

from posttrain.base.distributed import is_main
from posttrain.base.paths import shown


def draw(run: Path, files: bool = True) -> Path | None:
    """Write report.html, and with `files` plots/*.png; returns the page. The main process does.

    A run is worth more than its pictures: what goes wrong here is said in one line, and no more.
    """
    if not is_main():
        return None
    try:
        from posttrain.report.page import write_report

        return write_report(run, files)
    except Exception as error:  # any fault of a drawing library or of what it is given
        text = " ".join(str(error).split())[:200]
        print(f"note: {shown(run / 'report.html')} not drawn: {type(error).__name__}: {text}")
        return None


class LivePage:
    """Keeps report.html up to date while a run trains, in under 1% of its time.

    A page is drawn at most once in `EVERY` seconds, and later where drawing turned out slow; the
    PNG files wait for the end of the run.
    """

    EVERY = 60.0
    SHARE = 0.01  # of the time, for drawing

    def __init__(self, run: Path) -> None:
        self.run = run
        self._next = time.monotonic() + self.EVERY

    def refresh(self) -> None:
        """Draw the page if it is time."""
        started = time.monotonic()
        if started < self._next:
            return
        draw(self.run, files=False)
        took = time.monotonic() - started
        self._next = started + max(self.EVERY, took / self.SHARE)
