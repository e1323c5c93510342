"""The Dockerfile's steps, run as a script where there is no Docker engine."""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile and what follows it, line ends joined."""

    word: str
    rest: str


def steps() -> list[Step]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Step(*line.split(maxsplit=1)) for line in lines]


def ignored() -> list[str]:
    return (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def test_base_image_is_pinned_and_supported() -> None:
    (base,) = (step.rest for step in steps() if step.word == "FROM")
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", base)
    assert version and 11 <= int(version[1]) <= 13


def test_every_file_it_copies_is_there_and_the_lock_comes_first() -> None:
    copies = [step.rest.split()[:-1] for step in steps() if step.word == "COPY"]
    assert copies[0] == ["run", "requirements.lock"] and copies[-1] == ["."]
    for sources in copies:
        for source in sources:
            assert (ROOT / source).exists() and source not in ignored()
    words = [step.word for step in steps()]
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

    for step in steps():
        if step.word == "WORKDIR":
            here = here / step.rest
            inside(".").mkdir(parents=True, exist_ok=True)
        elif step.word == "ENV":
            given = dict(each.split("=", 1) for each in shlex.split(step.rest))
            given.pop("UV_CACHE_DIR", None)  # a mount of the build; here uv has its usual one
            environment |= {k: v.replace("/app", str(inside("/app"))) for k, v in given.items()}
        elif step.word == "COPY":
            *sources, target = step.rest.split()
            for source in sources:
                copy(ROOT / source, inside(target))
        elif step.word == "RUN" and "apt-get" not in step.rest:
            command = re.sub(r"--mount=\S+\s", "", step.rest)
            result = execute(command)
            assert result.returncode == 0, result.stderr
    entry = inside("/app/run")
    assert os.access(entry, os.X_OK)
    assert "./run demo" in execute(f"{shlex.quote(str(entry))} help").stdout
    settings = "--config configs/grpo_demo.yaml training.max_steps=1 evaluation.limit=4"
    result = execute(f"{shlex.quote(str(entry))} grpo {settings}")
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
