"""docs/elsewhere.md: HF Jobs as the hub's client and ours read the command, the SkyPilot task
without SkyPilot, on which nothing here depends, and the Dockerfile's steps, run as a script.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.cli._cli_utils import parse_volumes

from posttrain.settings.strict_yaml import read_yaml
from tests.helpers import ROOT
from tests.quickstarts.pages import blocks, text_of
from tests.quickstarts.test_readme import check_parses

# --- HF Jobs --------------------------------------------------------------------------------------


@pytest.fixture
def words() -> list[str]:
    """The command of docs/elsewhere.md."""
    page = blocks(text_of(ROOT / "docs" / "elsewhere.md"), "bash")
    (command,) = (block for block in page if block.startswith("hf jobs run "))
    return shlex.split(command.replace("\\\n", ""))


def test_the_client_takes_it(words: list[str], tmp_path: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    output = subprocess.run(
        [hf, *words[1:3], "--dry-run", *words[3:]],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_TOKEN": "mine"},
    )
    assert output.returncode == 0, output.stderr
    shown = dict(line.split(maxsplit=1) for line in output.stdout.splitlines() if line[:2] == "  ")
    assert (shown["flavor"], shown["timeout"], shown["image"]) == ("l4x1", "6h", "python:3.12")
    assert shown["secrets"].startswith("HF_TOKEN=") and "not submitted" in output.stdout
    (volume,) = parse_volumes([words[words.index("--volume") + 1]]) or []
    assert (volume.type, volume.mount_path) == ("bucket", "/runs")


def test_what_it_runs_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cloned, entered, ours = words[-1].split(" && ")
    assert (cloned, entered) == ("git clone REPOSITORY /app", "cd /app")
    assert "--output /runs/" in ours  # on the volume, where the next job finds it
    check_parses(ours, monkeypatch)


# --- SkyPilot -------------------------------------------------------------------------------------


@pytest.fixture
def task() -> dict[str, Any]:
    return read_yaml(ROOT / "sky.yaml")


def test_spot_recovery_and_a_run_folder_that_outlives_the_machine(task: dict[str, Any]) -> None:
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert task["file_mounts"]["/outputs"]["name"] == "${BUCKET}"
    assert task["envs"]["BUCKET"] is None  # must be given; SkyPilot refuses to start without


@pytest.mark.long  # the script that it starts is that of every other test
def test_commands_of_the_task_run(task: dict[str, Any], tmp_path: Path) -> None:
    """`setup` and `run` as a shell would take them, up to the model (--dry-run)."""
    commands = task["run"].replace("/outputs/", f"{shlex.quote(str(tmp_path))}/")
    used = set(re.findall(r"\$(\w+)", commands)) - {"HOME"}
    assert used == {"SCRIPT", "CONFIG", "ARGUMENTS"} and used <= set(task["envs"])
    values = {**task["envs"], "BUCKET": "b", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert (ROOT / values["CONFIG"]).exists()
    values |= {"CONFIG": "configs/dpo_demo.yaml", "SCRIPT": "dpo", "ARGUMENTS": "--dry-run"}
    if not (ROOT / ".venv" / "installed.lock").exists():
        pytest.skip("not installed by ./run")
    result = subprocess.run(
        ["bash", "-euc", f"{task['setup']}\n{commands}"],
        cwd=ROOT,
        env=values,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "500 pairs to train on" in result.stdout


# --- Docker ---------------------------------------------------------------------------------------


def steps() -> list[list[str]]:
    """Each instruction of the Dockerfile and what follows it, line ends joined."""
    lines = text_of(ROOT / "Dockerfile").replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]


def ignored() -> list[str]:
    return text_of(ROOT / ".dockerignore").split()


def test_base_image_is_pinned_and_supported() -> None:
    (base,) = (rest for word, rest in steps() if word == "FROM")
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", base)
    assert version and 11 <= int(version[1]) <= 13


def test_every_file_it_copies_is_there_and_the_lock_comes_first() -> None:
    copies = [rest.split()[:-1] for word, rest in steps() if word == "COPY"]
    assert copies[0] == ["run", "requirements.lock"] and copies[-1] == ["."]
    for sources in copies:
        for source in sources:
            assert (ROOT / source).exists() and source not in ignored()
    words = [word for word, _ in steps()]
    assert words.index("COPY") < words.index("RUN", words.index("COPY")) < len(words)


def test_nothing_heavy_or_private_gets_into_the_image() -> None:
    assert {".git", ".venv", "outputs", "wandb", "**/__pycache__"} <= set(ignored())


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler, as the image has")
@pytest.mark.skipif(
    shutil.disk_usage("/tmp").free < 12 * 2**30, reason="needs 12 GB for an environment"
)
def test_the_steps_as_a_script(tmp_path: Path) -> None:
    """COPY, ENV, WORKDIR and RUN in order, under a folder that stands for the image's root.

    Packages of the system are left out (they would be this machine's); what they are needed for is
    checked to be here instead.
    """
    root, here = tmp_path / "image", Path("/")
    environment = {
        name: os.environ[name]
        for name in os.environ
        if name in ("PATH", "HOME", "TMPDIR") or name.startswith(("UV_", "PIP_", "SSL_"))
    }

    def inside(path: Path | str) -> Path:
        return root / str(here / path).lstrip("/")

    def execute(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=inside("."),
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
        )

    for word, rest in steps():
        if word == "WORKDIR":
            here = here / rest
            inside(".").mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            given = dict(each.split("=", 1) for each in shlex.split(rest))
            given.pop("UV_CACHE_DIR", None)  # a mount of the build; here uv has its usual one
            environment |= {k: v.replace("/app", str(inside("/app"))) for k, v in given.items()}
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, inside(target))
        elif word == "RUN" and "apt-get" not in rest:
            result = execute(re.sub(r"--mount=\S+\s", "", rest))
            assert result.returncode == 0, result.stderr
    entry = shlex.quote(str(inside("/app/run")))
    assert os.access(inside("/app/run"), os.X_OK)
    assert "./run demo" in execute(f"{entry} help").stdout
    settings = "--config configs/grpo_demo.yaml training.max_steps=1 evaluation.limit=4"
    result = execute(f"{entry} grpo {settings}")
    assert result.returncode == 0, result.stderr
    assert (inside("outputs") / "grpo_demo" / "eval" / "comparison.json").exists()


def copy(source: Path, target: Path) -> None:
    """COPY as Docker does it: a folder's contents, without what .dockerignore names."""
    if source.is_file():
        shutil.copy(source, target / source.name)
        return
    names = [name.removeprefix("**/") for name in ignored()]
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns(*names), dirs_exist_ok=True, symlinks=True
    )
