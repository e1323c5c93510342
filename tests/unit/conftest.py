"""Asking the training scripts something as a user would, where nothing heavy may be loaded."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT

Answer = tuple[subprocess.CompletedProcess[str], float]
Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which whoever imports torch or unsloth ends with code 99."""
    folder = tmp_path_factory.mktemp("bait")
    for name in ("torch", "unsloth"):
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")
    return folder


@pytest.fixture(scope="session")
def ask(bait: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`ask("grpo", *arguments, within=1.0)` -> what scripts/grpo.py answered, and its seconds.

    Offline and behind the bait. Seconds are the best of three runs, fewer once one is fast enough;
    on a machine with more to do than cores, the processor's seconds, without the waiting.
    """
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(bait),
    }

    def run(script: str, *arguments: str | Path, within: float) -> Answer:
        best = float("inf")
        for _ in range(3):
            started, used = time.perf_counter(), _children_seconds()
            result = subprocess.run(
                [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                env=environment,
            )
            took, used = time.perf_counter() - started, _children_seconds() - used
            busy = os.getloadavg()[0] > (os.cpu_count() or 1)
            best = min(best, used if busy else took)
            if best < within:
                break
        return result, best

    return run


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system
