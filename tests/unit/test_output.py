"""Output whose reader goes away: the process goes on, and leaves with its own exit code."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model import runtime
from tests.helpers import ROOT

PROGRAM = """
import logging, os, sys
from posttrain.base.process import run_main

def main():
    logging.warning("an early word")
    assert sys.stdin.readline() == "go\\n"
    for number in range(3):
        print("word " * 5000, flush=number == 1)
        print("word", file=sys.stderr)
    logging.warning("a late word")
    os.write(1, b"beside Python")
    return 7

run_main(main)
"""


@pytest.mark.parametrize("opened", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_output_may_lose_its_reader(opened: Callable[[], tuple[int, int]]) -> None:
    reader, writer = opened()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=writer,
        stderr=writer,
        cwd=ROOT,
        text=True,
    )
    os.close(writer)
    assert b"an early word" in os.read(reader, 4096)
    os.close(reader)
    process.communicate("go\n", timeout=60)
    assert process.returncode == 7


def test_unbuffered_output_stays_unbuffered() -> None:
    program = "import sys\nfrom posttrain.base.process import run_main\n"
    program += "run_main(lambda: print('now', end='') or sys.stdin.readline() and 0)"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 16) == b"now"  # while it waits for its input
    process.communicate(b"go\n", timeout=60)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_read_arrives_whole(unbuffered: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="go\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert result.returncode == 7
    assert result.stdout.count("word ") == 15000 and "beside Python" in result.stdout
    assert result.stderr.count("word\n") == 3 + 2  # printed, logged


@pytest.mark.parametrize(
    ("error", "shown"), [(ConfigError, ""), (RuntimeError, "a library's line\n")]
)
def test_what_libraries_print_is_shown_only_where_the_error_is_theirs(
    error: type[Exception], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error), runtime.quiet(verbose=False):
        print("a library's line")
        raise error
    assert capsys.readouterr().err == shown


def test_output_may_be_closed_from_the_start(tmp_path: Path) -> None:
    """A file that is opened later must not become what child processes take for their output."""
    program = (
        "import os, sys, subprocess\nfrom posttrain.base.process import run_main\n"
        "def main():\n"
        "    print('lost')\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "        subprocess.run(['echo', 'lost too'], check=True)\n"
        "    return 7\n"
        "run_main(main)\n"
    )
    command = f'"{sys.executable}" -c "$0" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", command, program], cwd=ROOT)
    assert done.returncode == 7
    assert (tmp_path / "file").read_text() == ""
