"""A signal ends `evaluate` and `judge` at once, also while a server is silent in mid-answer."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT
from tests.unit.test_judge import french_judge, run
from tests.unit.test_server import Reply, Server, api, choice

__all__ = ["api", "run"]
ANSWERED = 5
PROBLEMS = ROOT / "assets" / "demo_data" / "problems_test.jsonl"


@pytest.mark.parametrize(
    ("command", "number"), [("evaluate", signal.SIGINT), ("judge", signal.SIGTERM)]
)
def test_a_signal_ends_it(
    api: Server, run: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """The server answers some requests, and of the others sends only the headers."""
    output, reached = tmp_path / "output", threading.Event()

    def plan(body: dict[str, Any], number: int) -> Reply:
        if number < ANSWERED:
            judging = command == "judge"
            return french_judge(body, number) if judging else choice("<answer>1</answer>")
        reached.set()
        return 200, "", {"X-Hang": "1"}

    api.plan = plan
    if command == "judge":
        kept = "verdicts.jsonl"
        words = ["judge", run, "--url", api.url, "--model", "m", "--at-once", "2"]
    else:
        kept = "replies.jsonl"
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
