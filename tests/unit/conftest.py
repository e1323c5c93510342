"""Running the project's commands as a user would, where nothing heavy may be imported."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT

Ask = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "unsloth", "peft", "matplotlib", "jinja2", "wandb")


@pytest.fixture(scope="session")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which importing a heavy library ends the process with code 99."""
    folder = tmp_path_factory.mktemp("bait")
    for name in HEAVY:
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")
    return folder


@pytest.fixture(scope="session")
def ask(bait: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`ask("grpo", *arguments, NAME=value)` -> what scripts/grpo.py answered, offline and behind
    the bait.

    Nothing here measures seconds, which a busy machine would fail: these imports are what is slow.
    """
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(bait),
    }

    def run(
        script: str, *arguments: str | Path, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            env={**environment, **variables},
        )

    return run
