"""What unit tests share: files, adapters and settings, and the project's commands as a user runs
them, where nothing heavy may be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

Ask = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "unsloth", "peft", "matplotlib", "jinja2", "wandb")
ADAPTER = {
    "base_model_name_or_path": "assets/demo_model",
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ["v_proj", "q_proj"],
    "init_lora_weights": True,
    "bias": "none",
    "use_rslora": True,
    "use_dora": False,
}


def make_config(folder: Path, **changes: Any) -> Path:
    """A folder with an adapter's config alone: ADAPTER with `changes`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **changes}), "utf-8")
    return folder


def write_file(path: Path, content: str | bytes) -> Path:
    """A file with this content, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


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
