"""A signal ends `evaluate` and `judge` at once, also while a server is silent in mid-answer."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT
from tests.unit.test_judge import french_judge, run
from tests.unit.test_server import Reply, Server, api, choice

__all__ = ["api", "run"]
ANSWERED = 5
PROBLEMS = ROOT / "assets" / "demo_data" / "problems_test.jsonl"


@pytest.fixture
def silent(api: Server) -> Callable[[Callable[[dict[str, Any], int], Reply]], threading.Event]:
    """Let the server answer some requests by a plan, and of the others send only the headers."""

    def after_some(plan: Callable[[dict[str, Any], int], Reply]) -> threading.Event:
        reached = threading.Event()

        def planned(body: dict[str, Any], number: int) -> Reply:
            if number < ANSWERED:
                return plan(body, number)
            reached.set()
            return 200, "", {"X-Hang": "1"}

        api.plan = planned
        return reached

    return after_some


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["evaluate", "judge"])
def test_a_signal_ends_it(
    api: Server, run: Path, tmp_path: Path, silent: Any, command: str, number: signal.Signals
) -> None:
    output = tmp_path / "output"
    if command == "judge":
        reached, kept = silent(french_judge), "verdicts.jsonl"
        words = ["judge", run, "--url", api.url, "--model", "m", "--at-once", "2"]
    else:
        reached, kept = silent(lambda *_: choice("<answer>1</answer>")), "replies.jsonl"
        words = ["evaluate", "--model", api.url, "--data", PROBLEMS, "--batch-size", "2"]
    script = str(ROOT / "scripts" / f"{words[0]}.py")
    started = subprocess.Popen(
        [sys.executable, script, *map(str, words[1:]), "--output", str(output)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert reached.wait(120)
    time.sleep(2)  # until the answers before it are on the disk
    sent = time.monotonic()
    started.send_signal(number)
    _, error = started.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert started.returncode == 128 + number
    assert f"stopped by {number.name}" in error and "Traceback" not in error
    rows = [json.loads(line) for line in (output / kept).read_text("utf-8").splitlines()]
    assert len(rows) == ANSWERED
