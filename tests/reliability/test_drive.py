"""A run in a folder without links, locks, modes and whole renames, which loses its newest writes: a
Google Drive that Colab mounts, and a Colab that is reset."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_script
from tests.reliability.inside import succeed
from tests.reliability.test_interruptions import arguments, assert_same, scores, start, wait_for

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
TRIES = """
import fcntl, os, sys
os.chdir(sys.argv[1])
file = open("a", "w")
for name, use in {
    "symlink": lambda: os.symlink("a", "b"),
    "link": lambda: os.link("a", "b"),
    "flock": lambda: fcntl.flock(file, fcntl.LOCK_EX),
    "lockf": lambda: fcntl.lockf(file, fcntl.LOCK_EX),
    "chmod": lambda: os.chmod("a", 0o600),
    "fsync of a folder": lambda: os.fsync(os.open(".", os.O_RDONLY)),
}.items():
    try:
        use()
    except OSError as error:
        print(name, error.errno)
"""


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which DRIVE_FOLDER behaves so."""
    folder = tmp_path_factory.mktemp("drive")
    library = tmp_path_factory.mktemp("built") / "drive.so"
    source = ROOT / "tests" / "reliability" / "drive.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"DRIVE_FOLDER": str(folder), "LD_PRELOAD": str(library)}


def test_the_folder_behaves_so(drive: dict[str, str], tmp_path: Path) -> None:
    def refused(folder: str | Path) -> str:
        command = [sys.executable, "-c", TRIES, str(folder)]
        return subprocess.check_output(command, text=True, env={**os.environ, **drive})

    unknown, none, denied = errno.EOPNOTSUPP, errno.ENOLCK, errno.EPERM
    assert refused(drive["DRIVE_FOLDER"]).splitlines() == [
        *(f"symlink {unknown}", f"link {unknown}", f"flock {unknown}", f"lockf {none}"),
        *(f"chmod {denied}", f"fsync of a folder {errno.EINVAL}"),
    ]
    assert refused(tmp_path) == "link 17\n"  # the symlink of the line before is there


def lose_newest_writes(folder: Path, seconds: float) -> list[str]:
    """What a reset may do to files that were not uploaded yet: they are there, and empty."""
    lost = []
    for path in folder.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime < seconds:
            path.write_bytes(b"")
            lost.append(path.name)
    return lost


@pytest.mark.long
def test_a_run_on_drive_goes_on_after_a_reset(
    drive: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the newest checkpoint was half uploaded, as the run that was never interrupted;
    the third time it trains nothing, and then it is exported there."""
    complete = tmp_path / "complete"
    succeed("grpo", *arguments("grpo", complete))
    for name, value in drive.items():
        monkeypatch.setenv(name, value)
    run = Path(drive["DRIVE_FOLDER"]) / "grpo"
    process = start("grpo", run)
    newest = run / "checkpoints" / "step-000006"
    wait_for(process, lambda: (newest / "manifest.json").exists())
    process.kill()
    process.communicate()
    assert "adapter_model.safetensors" in lose_newest_writes(newest, seconds=60)
    again = succeed("grpo", *arguments("grpo", run))
    assert "step-000006" in again.stdout and "step-000004" in again.stdout
    assert_same(run, complete)
    assert scores(run) == scores(complete)

    metrics = (run / "metrics.jsonl").read_bytes()
    third = succeed("grpo", *arguments("grpo", run))
    assert "is a finished run" in third.stdout
    assert (run / "metrics.jsonl").read_bytes() == metrics
    made = run_script("export", run, "--to", "merged_16bit", "export.parity.new_tokens=16")
    assert made.returncode in (0, 4), made.stderr  # 4: so few steps may change too little
    assert (run / "merged_16bit" / "model.safetensors").is_file()
