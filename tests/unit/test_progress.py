"""The view of a training run: on a real terminal (a pseudo-terminal) and without one."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from posttrain.base import progress
from posttrain.base.progress import Clock
from posttrain.run.checkpoint import Score
from posttrain.run.folder import RunFolder
from posttrain.train import loop
from posttrain.train.stop import StopRequest
from posttrain.train.view import TrainingView
from tests.helpers import ROOT, Capsys, demo_settings
from tests.unit.conftest import write_file

SHOWN = {"reward": "reward", "reward_std": "std"}
TRAIN = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
sys.modules["torch"] = type(sys)("torch")  # it would take seconds to load
sys.modules["torch"].cuda = type(sys)("cuda")
sys.modules["torch"].cuda.is_available = lambda: False
from posttrain.train.view import TrainingView
with TrainingView({SHOWN}, every=20) as view:
    view.start(20, 0)
    view.bar.delay = view.bar.mininterval = 0
    for step in range(1, 21):
        time.sleep(0.02)
        view.log({{"step": step, "reward": step / 10, "reward_std": 0.5, "num_tokens": 900 * step}})
        view.update(step)
    if sys.argv[1:]:
        time.sleep(60)
print("done")
"""
STATE = r"reward 2, std 0.5, [\d,]+ tokens/s, [\d.]+ GB"


def script(*stay: str) -> list[str]:
    return [sys.executable, "-c", TRAIN, *stay]


def on_a_terminal(
    command: list[str], columns: int, stop_at: bytes = b"", **environment: str
) -> tuple[str, int]:
    """What a command writes to a terminal of that width, and its exit code.

    With `stop_at`, Ctrl-C is typed once that was seen.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    hidden = {*progress.NOTEBOOKS, "NO_COLOR", "COLUMNS", "LINES"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**kept, "TERM": "xterm-256color", **environment},
        # A job that a script put in the background ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        output += chunk
        if stop_at and stop_at in output:
            process.send_signal(signal.SIGINT)
            stop_at = b""
    os.close(ours)
    return output.decode("utf-8"), process.wait(timeout=30)


@pytest.mark.parametrize("columns", [120, 40])
def test_on_a_terminal_the_bar_moves_and_its_end_stays(columns: int) -> None:
    output, code = on_a_terminal(script(), columns)
    assert code == 0
    drawn = [text for text in re.split(r"[\r\n]+|\x1b\[[A-K]", output) if "training" in text]
    assert drawn[-1].startswith("training 100%| 20/20 [") and len(drawn) > 5
    assert max(map(len, drawn)) <= columns
    assert re.search(f"step 20/20: {STATE}", output) and output.rstrip().endswith("done")


def test_a_signal_leaves_a_usable_terminal() -> None:
    """A second Ctrl-C, or a kill, ends the process with no chance to bring the cursor back."""
    output, code = on_a_terminal(script("stay"), 80, stop_at=b"20/20")
    assert code != 0 and "KeyboardInterrupt" in output
    assert "\x1b[?25l" not in output


@pytest.mark.parametrize("where", [{"COLAB_RELEASE_TAG": "x"}, {"TERM": "dumb"}, None])
def test_in_a_notebook_and_without_a_terminal_lines_are_plain(where: dict[str, str] | None) -> None:
    if where is None:
        result = subprocess.run(script(), capture_output=True, text=True, timeout=60)
        output, code = result.stdout, result.returncode
        assert result.stderr == ""
    else:
        output, code = on_a_terminal(script(), 80, **where)
    assert code == 0 and re.fullmatch(f"step 20/20: {STATE}\r?\ndone\r?\n", output)


@pytest.mark.parametrize(("seconds", "late"), [(1.0, []), (10.0, [47, 49, 52, 54, 56, 58])])
def test_state_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: Capsys, seconds: float, late: list[int]
) -> None:
    """At every tenth step, and where the last line is a quarter of a minute old."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("posttrain.train.view.memory", lambda: "1.0 GB")
    with TrainingView(SHOWN, every=10) as view:
        view.start(100, 45)  # resumed
        for step in range(46, 61):
            now[0] += seconds
            reward = float("nan") if step == 46 else float(step)
            view.log({"reward": reward, "reward_std": None, "num_tokens": 100.0 * step})
            view.update(step)
    lines = {int(line.split("/")[0][5:]): line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == sorted([50, 60, *late])
    shown = ["0 s", "1 min 00 s", "1 min 05 s", "2 h 03 min"]
    assert [progress.duration(s) for s in (0, 59.6, 65, 3600 * 2 + 189)] == shown
    rate, left = 100 / seconds, progress.duration(50 * seconds)
    assert lines[50] == f"step 50/100: reward 50, {rate:.0f} tokens/s, 1.0 GB, {left} left"


def test_a_step_is_shown_with_its_own_metrics(tmp_path: Path) -> None:
    """A validation is logged before the step that it follows, and may take longer than a line."""
    run, view = RunFolder(tmp_path), TrainingView(SHOWN)
    view.start(2, 0)
    training = demo_settings("grpo").training
    score, stop = Score("reward"), StopRequest(None)
    callback = loop.RunCallback(run, view, Clock(), stop, {}, training, score)
    for step, logs, shown in (
        (1, {"loss": 0.0, "reward": 1.0}, 1),
        (2, {"validation/strict": 0.5}, 1),
        (2, {"loss": 0.0, "reward": 2.0}, 2),
    ):
        callback.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)
        assert view.step == shown and view.state().startswith(f"reward {shown}, ")


BARS = """
from posttrain.base import progress
progress.LINE_EVERY = 0.0
outer = progress.progress_bar("answering", 2, leave=True)
for _ in range(2):
    with progress.progress_bar("generating", 3) as inner:
        outer.delay = inner.delay = 0
        for _ in range(3):
            inner.update(1)
    progress.say("a line of ours")
    outer.update(1)
outer.close()
"""


def test_bars_inside_bars_write_no_cursor_codes_to_a_pipe() -> None:
    command = [sys.executable, "-c", BARS]
    environment = {**os.environ, "TERM": "xterm-256color"}  # it is a pipe all the same
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert result.stdout == b"a line of ours\n" * 2
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", result.stderr)
    lines = result.stderr.decode().splitlines()
    assert {line.split(":")[0] for line in lines} == {"answering", "generating"}
    assert "100%" in lines[-1] and lines[-1].startswith("answering")


def test_a_dataset_is_read_without_a_bar_into_a_pipe(tmp_path: Path) -> None:
    write_file(tmp_path / "data" / "rows.csv", "question,answer\n1 + 1?,2\n")
    program = f"""
from posttrain.base.process import run_main
from posttrain.data.sources import read_rows
from posttrain.settings import Source
run_main(lambda: print(len(read_rows(Source(path={str(tmp_path / "data")!r})))))
"""
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert (result.stdout, result.stderr) == (b"1\n", b"")
