"""A folder has one writer: who is refused, with which message, and when a lock is taken over."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.base import lock
from posttrain.base.errors import ConfigError
from tests.helpers import ROOT
from tests.unit.conftest import Ask

HOLD = """
import socket, sys, time
from pathlib import Path
path, host = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
from posttrain.base import lock
lock.LEASE = 1.5
lease = lock.hold(Path(path), Path("folder"), "another run is writing there")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """The number of a process that holds a lock; its machine has another name if one is given."""
    monkeypatch.setattr(lock, "LEASE", 1.5)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock", getattr(request, "param", "")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(process.wait)
    request.addfinalizer(process.kill)
    assert process.stdout is not None
    request.addfinalizer(process.stdout.close)
    assert process.stdout.readline() == "held\n"
    return process.pid


def hold(path: Path) -> float:
    started = time.monotonic()
    lock.hold(path / "lock", path, "another run is writing there").release()
    return time.monotonic() - started


def test_a_second_process_is_told_who_holds_it(holder: int, tmp_path: Path) -> None:
    output = rf"{tmp_path}: another run is writing there \(process {holder}, since 20\d\d-.* "
    with pytest.raises(ConfigError, match=output):
        hold(tmp_path)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_has_lost_it_at_once(
    holder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaped: bool
) -> None:
    monkeypatch.setattr(lock, "LEASE", 60.0)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    (tmp_path / "lock").write_text((tmp_path / "lock").read_text().replace("1.5", "60.0"))
    os.kill(holder, signal.SIGKILL)
    os.waitid(os.P_PID, holder, os.WEXITED | (0 if reaped else os.WNOWAIT))
    assert hold(tmp_path) < 30
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("holder", ["elsewhere"], indirect=True)
def test_a_holder_on_another_machine_keeps_it_while_it_lives(holder: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"process {holder} on elsewhere\)"):
        hold(tmp_path)
    os.kill(holder, signal.SIGSTOP)
    assert lock.LEASE < lock.PATIENCE + lock.LEASE / 2 < hold(tmp_path) + lock.LEASE


def test_a_holder_that_was_superseded_ends_itself(holder: int, tmp_path: Path) -> None:
    """As after a long sleep of its machine."""
    (tmp_path / "lock").rename(tmp_path / "old")
    (tmp_path / "lock").write_text("another's\n")
    _, status = os.waitpid(holder, 0)
    assert os.waitstatus_to_exitcode(status) == 2


def test_a_lock_that_is_let_go_of_is_gone(tmp_path: Path) -> None:
    for _ in range(2):
        lease = lock.hold(tmp_path / "lock", tmp_path, "another run is writing there")
        assert (tmp_path / "lock").exists()
        del lease
        assert not (tmp_path / "lock").exists()


def test_a_script_refuses_before_anything_heavy(ask: Ask, tmp_path: Path) -> None:
    held = lock.hold(tmp_path / ".run.lock", tmp_path / "run", "another run is writing there")
    demo = ("--config", ROOT / "configs" / "dpo_demo.yaml", "--output", tmp_path / "run")
    result = ask("dpo", *demo, "--resume", "never")
    assert result.returncode == 2
    assert re.search(rf"another run is writing there \(process {os.getpid()}, ", result.stderr)
    assert not (tmp_path / "run").exists()
    data = ROOT / "assets" / "demo_data" / "problems_test.jsonl"
    model = ("--model", ROOT / "assets" / "demo_model", "--data", data)
    result = ask("evaluate", *model, "--output", tmp_path / "run")
    assert result.returncode == 2
    assert re.search(rf"another evaluation is writing there \(process {os.getpid()}", result.stderr)
    held.release()
