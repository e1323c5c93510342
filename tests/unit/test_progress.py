"""The view of a training run: on a real terminal (a pseudo-terminal) and without one."""

import fcntl
import json
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
from posttrain.run.checkpoint import Score
from posttrain.run.environment import Clock
from posttrain.run.folder import RunFolder
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from posttrain.train import loop
from posttrain.train.stop import StopRequest
from posttrain.train.view import TrainingView, last_event, render, sparkline
from tests.helpers import ROOT

SHOWN = {"reward": "reward", "reward_std": "std"}
TRAIN = """
import sys, time
sys.path.insert(0, {root!r})
sys.modules["torch"] = type(sys)("torch")  # it would take seconds to load, and is asked one thing
sys.modules["torch"].cuda = type(sys)("cuda")
sys.modules["torch"].cuda.is_available = lambda: False
from pathlib import Path
from posttrain.train.view import TrainingView
with TrainingView({{"reward": "reward", "reward_std": "std"}}, Path({health!r})) as view:
    view.start(20, 0)
    for step in range(1, 21):
        time.sleep({pause})
        view.update(step)
        view.log({{"step": step, "reward": step / 10, "reward_std": 0.5, "num_tokens": 900 * step}})
        if step == 10:
            print("a line of a library")
    {end}
print("done")
"""


def script(tmp_path: Path, pause: float = 0.02, end: str = "pass") -> list[str]:
    health = str(tmp_path / "health.jsonl")
    return [sys.executable, "-c", TRAIN.format(root=str(ROOT), health=health, pause=pause, end=end)]


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


def screen(output: str, columns: int) -> list[str]:
    """The lines that a terminal shows in the end: rich moves by line and erases, nothing else."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", output):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b["):
            count = int(part[2:-1]) if part[2:-1].isdigit() else 1
            if part[-1] == "A":
                row -= count
            elif part[-1] == "K":
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    assert max(map(len, lines)) <= columns
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("columns", [120, 80, 40])
def test_on_a_terminal_the_last_state_stays(tmp_path: Path, columns: int) -> None:
    (tmp_path / "health.jsonl").write_text('{"step": 7, "message": "all groups are equal"}\n')
    output, code = on_a_terminal(script(tmp_path), columns)
    assert code == 0
    lines = screen(output, columns)
    assert lines[0] == "a line of a library" and lines[-1] == "done"
    view = "\n".join(lines[1:-1])
    assert re.search(r"training ━+ 20/20 100%", view)
    for words in ("reward 2 ▁", "std 0.5", "tokens/s", "GB", "in all"):
        assert words in view
    assert "step 7: all groups are equal" in view
    assert "\x1b[?25l" not in output  # the cursor was never hidden


def test_ctrl_c_leaves_a_usable_terminal(tmp_path: Path) -> None:
    output, code = on_a_terminal(script(tmp_path, pause=1.0), 80, stop_at=b"0/20")
    assert code != 0 and "KeyboardInterrupt" in output
    assert "\x1b[?25l" not in output
    assert "KeyboardInterrupt" in output.splitlines()[-1]  # which CPython 3.13 colours


def test_the_cursor_is_never_hidden(tmp_path: Path) -> None:
    """A second Ctrl-C, or a kill, ends the process with no chance to bring it back."""
    end = "import os; os._exit(1)"
    output, code = on_a_terminal(script(tmp_path, end=end), 80)
    assert code == 1
    assert "\x1b[?25l" not in output


@pytest.mark.parametrize("where", [{"COLAB_RELEASE_TAG": "x"}, {"TERM": "dumb"}])
def test_in_a_notebook_lines_are_plain(tmp_path: Path, where: dict[str, str]) -> None:
    output, code = on_a_terminal(script(tmp_path), 80, **where)
    assert code == 0 and "\x1b" not in output
    assert re.search(r"training 20/20 100% \| \d s \| reward 2 ▁", output)


def test_without_a_terminal_a_line_is_printed(tmp_path: Path) -> None:
    result = subprocess.run(script(tmp_path), capture_output=True, text=True, timeout=60)
    assert result.stdout == "a line of a library\ndone\n"
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        r"training 20/20 100% \| \d s \| reward 2 [▁-█]+  std 0.5 \| [\d,]+ tokens/s \| .* GB",
        line,
    )


def test_plain_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("posttrain.train.view.memory", lambda: "1.0 GB")
    with TrainingView(SHOWN) as view:
        view.start(100, 40)  # resumed
        for step in range(41, 61):
            now[0] += 2.0
            view.log({"reward": float(step), "num_tokens": 100.0 * step})
            view.update(step)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("training 48/100  48% | 16 s, 1 min 44 s left | reward 48 ")
    assert second.startswith("training 56/100")
    assert last.startswith("training 60/100  60% | 40 s | ")  # stopped early: no time left to tell
    assert "50 tokens/s | 1.0 GB" in last


def test_nothing_is_said_of_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingView(SHOWN) as view:
        view.start(10, 0)
    assert capsys.readouterr().err == ""


def test_a_step_is_shown_with_its_own_metrics(tmp_path: Path) -> None:
    """A validation is logged before the step that it follows, and may take longer than a line."""
    run, view = RunFolder(tmp_path), TrainingView(SHOWN)
    training = load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml").training
    score, stop = Score("reward"), StopRequest(None)
    callback = loop._callback(run, view, Clock(), stop, {}, training, score)
    for step, logs in ((1, {"loss": 0.0, "reward": 1.0}), (2, {"validation/strict": 0.5})):
        callback.on_log(None, SimpleNamespace(global_step=step), None, logs=logs)
    assert (view.step, view.metrics()) == (1, [("reward", "1")])
    logs = {"loss": 0.0, "reward": 2.0}
    callback.on_log(None, SimpleNamespace(global_step=2), None, logs=logs)
    assert (view.step, view.metrics()) == (2, [("reward", "2")])


def test_odd_values_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.train.view.memory", lambda: "1.0 GB")
    with TrainingView(SHOWN) as view:
        view.start(3, 0)
        for value in (None, float("nan"), float("inf"), "x", 1.0):
            view.log({"reward": value, "reward_std": None})
        view.update(3)
        render(view)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([float("nan")], ""),
        ([1.0], "▄"),
        ([2.0, 2.0], "▄▄"),
        ([0.0, 1.0], "▁█"),
        ([0.0, float("inf"), 7.0], "▁█"),
        (list(range(8)), "▁▂▃▄▅▆▇█"),
        (list(range(160)), "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"),
    ],
)
def test_sparklines(values: list[float], shown: str) -> None:
    assert sparkline(values) == shown


def test_durations() -> None:
    shown = ["0 s", "1 min 00 s", "1 min 05 s", "2 h 03 min"]
    assert [progress.duration(s) for s in (0, 59.6, 65, 3600 * 2 + 189)] == shown


def test_the_last_event(tmp_path: Path) -> None:
    path = tmp_path / "health.jsonl"
    assert last_event(path) == ""
    path.write_text("")
    assert last_event(path) == ""
    events = [{"step": 1, "message": "first"}, {"step": 9, "message": "last"}]
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"step": 10, "mes')
    assert last_event(path) == "step 9: last"


def test_a_bar_in_a_log_prints_its_end_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    bar = progress.progress_bar("answering", 2, leave=True)
    bar.delay = 0
    for _ in range(2):
        bar.update(1)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("%")[0].split()[-1] for line in lines][-2:] == ["50", "100"]


BARS = """
from posttrain.base import progress
from posttrain.run.checkpoint import Score
from posttrain.run.environment import Clock
from posttrain.run.folder import RunFolder
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from posttrain.train import loop
from posttrain.train.stop import StopRequest
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
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("question,answer\n1 + 1?,2\n", encoding="utf-8")
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
