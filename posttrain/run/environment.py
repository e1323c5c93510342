"""When, where and by which versions a run was made."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from datetime import datetime
from typing import Any

from posttrain.base.paths import ROOT

PACKAGES = (
    "unsloth",
    "unsloth_zoo",
    "trl",
    "transformers",
    "torch",
    "peft",
    "bitsandbytes",
    "datasets",
)
STARTED = datetime.now().astimezone().isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """What would be needed to repeat the run elsewhere: versions, commit, machine."""
    return {
        "started": STARTED,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """The project's commit, `-dirty` when files differ from it; None outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


class Clock:
    """Seconds since a run started, for metrics; `before` is what it took before it was resumed."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before

    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)
