"""Folders that cannot be written to: an output is refused at once in one line, with exit code 2;
without a user name, a home or a cache commands run all the same."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain.base.disk import check_folder
from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask
from tests.helpers import CONFIGS, ROOT
from tests.runs import dpo_run
from tests.unit.conftest import Ask

DEMO = ROOT / "assets"
PROBLEMS = DEMO / "demo_data" / "problems_test.jsonl"
UID = "12345"
# What a library does: torch names a cache after the user, others write below the home.
PROGRAM = """
import getpass, os, sys
from pathlib import Path
from posttrain.base.paths import cache_folder
from posttrain.base.process import run_main

def main():
    getpass.getuser()
    for folder in (Path.home() / ".library", cache_folder(), Path("~/.triton").expanduser()):
        if folder.is_relative_to(os.environ["TMPDIR"]):
            folder.mkdir(parents=True)
    print(Path.home(), cache_folder(), os.environ.get("HF_HOME"), sep="\\n")

run_main(main)
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("command", ["dpo", "evaluate", "judge"])
def test_a_file_where_a_folder_should_be(ask: Ask, tmp_path: Path, command: str) -> None:
    run = dpo_run(tmp_path / "run")
    words: dict[str, list[str | Path]] = {
        "dpo": ["--config", ROOT / "configs" / "dpo_demo.yaml"],
        "evaluate": ["--model", DEMO / "demo_model", "--data", PROBLEMS],
        "judge": [run, "--url", "http://127.0.0.1:9", "--model", "m"],
    }
    (tmp_path / "file").write_text("precious")
    output = tmp_path / "file" / "inside"
    result = ask(command, *words[command], "--output", output)
    printed = f"error: --output {output}: {tmp_path / 'file'} is a file; give a folder\n"
    assert (result.returncode, result.stderr) == (2, printed)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_saved_file_follows_the_umask(tmp_path: Path) -> None:
    """safetensors makes its files readable by their owner alone."""
    file = tmp_path / "adapter_model.safetensors"
    save_file({"weight": np.zeros(1)}, file)
    before = os.umask(0o027)
    try:
        follow_umask(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may do anything
    with pytest.raises(ConfigError, match=f"nothing can be written to {tmp_path}; give another"):
        check_folder(tmp_path / "new" / "run")


def test_what_the_system_refuses_is_one_line(ask: Ask, tmp_path: Path) -> None:
    """Where nothing detected it before: /sys takes no folders, not even from root."""
    for output in ("/sys/kernel/run", f"/tmp/{'x' * 300}"):
        arguments = ["--config", str(CONFIGS[0]), "--output", output]
        result = ask("dpo" if "dpo" in CONFIGS[0].name else "grpo", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ") and output[:11] in result.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def run(folder: Path) -> Run:
    """`run(*command, HOME=...)` as a user id without a passwd entry.

    The user may read everything, as this Python may be in a home of root's.
    """
    prefix = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root can become another user, by setpriv")
    if subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("this root may not give another user its right to read")
    temporary = folder / "temporary"
    temporary.mkdir()
    temporary.chmod(0o777)
    unset = {"HOME", "USER", "LOGNAME", "POSTTRAIN_CACHE", "HF_HOME", "XDG_CACHE_HOME"}

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        return subprocess.run(
            [*prefix, sys.executable, *command],
            cwd=ROOT,
            env={**kept, "TMPDIR": str(temporary), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def note(what: str, home: Path, names: str) -> str:
    return f"note: {what}; caches are kept in {home}. Set {names} to a folder that stays\n"


@pytest.mark.parametrize("home", ["", "/nonexistent", "/"])
def test_without_a_home_one_is_made(home: str, run: Run, folder: Path) -> None:
    spare = folder / "temporary" / f"posttrain-home-{UID}"
    result = run("-c", PROGRAM, **({"HOME": home} if home else {}))
    what = f"cannot write to HOME={home}" if home else "HOME is not set"
    assert result.stderr == note(what, spare, "HOME")
    # A home that is there stays, and its caches alone move.
    own = Path(home) if home == "/" else spare
    hub = spare / ".cache" / "huggingface" if home == "/" else None
    assert result.stdout.splitlines() == [str(own), str(spare / ".cache/posttrain"), str(hub)]
    assert spare.stat().st_mode & 0o777 == 0o700


def test_a_home_that_can_only_be_read_stays_in_use(run: Run, folder: Path) -> None:
    home, spare = folder / "home", folder / "temporary" / f"posttrain-home-{UID}"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    result = run("-c", PROGRAM, HOME=str(home))
    assert result.stderr == note(f"cannot write to HOME={home}", spare, "HOME")
    models = home / ".cache" / "huggingface"  # those that are there already can be loaded
    assert result.stdout.splitlines() == [str(home), str(spare / ".cache/posttrain"), str(models)]


def test_a_cache_of_somebody_else_is_replaced_alone(run: Run, folder: Path) -> None:
    home, spare = folder / "home", folder / "temporary" / f"posttrain-home-{UID}"
    (home / ".cache").mkdir(parents=True)
    home.chmod(0o777)
    result = run("-c", PROGRAM, HOME=str(home), HF_HOME=str(home / "models"))
    what = f"cannot write to XDG_CACHE_HOME={home}/.cache"
    assert result.stderr == note(what, spare, "XDG_CACHE_HOME")
    assert result.stdout.splitlines()[0] == str(home)


def test_a_store_of_models_that_can_only_be_read_is_read(run: Run, folder: Path) -> None:
    home, models = folder / "home", folder / "models"
    home.mkdir()
    home.chmod(0o777)
    models.mkdir()
    spare = folder / "temporary" / f"posttrain-home-{UID}"
    program = PROGRAM.replace("print(", 'print(os.environ["HF_DATASETS_CACHE"], ', 1)
    result = run("-c", program, HOME=str(home), HF_HOME=str(models))
    assert result.stderr == note(f"cannot write to HF_HOME={models}", spare, "HF_HOME")
    data, *_, hub = result.stdout.splitlines()
    assert (data, hub) == (f"{spare}/.cache/huggingface/datasets", str(models))


def test_where_nothing_can_be_written_a_line_says_what_to_set(run: Run, folder: Path) -> None:
    (folder / "temporary" / f"posttrain-home-{UID}").touch()  # somebody else was there first
    result = run("-c", PROGRAM, HOME="/nonexistent")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no home folder can be written, nor one for temporary files")
    assert line.endswith("set HOME and TMPDIR to folders that can be")


def test_torch_finds_a_cache(run: Run) -> None:
    call = "from torch._inductor.runtime.cache_dir_utils import default_cache_dir as find"
    program = PROGRAM.replace("getpass.getuser()", f"{call}\n    find()", 1)
    result = run("-c", program, HOME="/")
    assert result.returncode == 0, result.stderr


def test_a_command_runs_without_a_user(run: Run, folder: Path) -> None:
    result = run("scripts/doctor.py", "--output", str(folder / "temporary"))
    assert result.stderr.startswith("note: HOME is not set; ") and "Traceback" not in result.stderr
    assert "room for models" in result.stdout
