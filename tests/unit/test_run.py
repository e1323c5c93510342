"""The `run` command: any directory, arguments and exit codes passed on, quick the second time."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv" / "installed.lock").exists(), reason="not installed by ./run"
)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "run"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    result = run(cwd=tmp_path)
    assert result.returncode == 0
    for word in ("./run demo", "./run test", "dpo", "grpo", "evaluate", "PYTHON="):
        assert word in result.stdout
    assert "set -euo" not in result.stdout


def test_unknown_command(tmp_path: Path) -> None:
    result = run("trian", cwd=tmp_path)
    assert result.returncode == 2
    assert "unknown command 'trian'" in result.stderr


def test_arguments_and_exit_codes_pass_through(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    result = run("python", "-c", code, "a b", "*", "--x=1", cwd=tmp_path)
    assert result.returncode == 7
    assert result.stdout == "['a b', '*', '--x=1']\n"
    result = run("python", "-c", "", cwd=tmp_path)  # nothing is installed again
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    result = run("grpo", "--config", "nowhere.yaml", cwd=tmp_path)
    assert result.returncode == 2 and "nowhere.yaml" in result.stderr


def test_works_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ROOT / "run")
    result = subprocess.run([tmp_path / "link", "python", "-c", "exit(5)"], cwd=tmp_path)
    assert result.returncode == 5


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.8])
def test_an_early_interrupt_leaves_no_traceback(tmp_path: Path, delay: float) -> None:
    command = [ROOT / "run", "doctor", "--help"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as started:
        time.sleep(delay)
        started.send_signal(signal.SIGINT)
        _, output = started.communicate(timeout=60)
    assert "Traceback" not in output and "KeyboardInterrupt" not in output
