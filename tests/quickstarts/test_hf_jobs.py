"""The command for HF Jobs, as the hub's own client and ours read it; nothing is submitted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.cli._cli_utils import parse_volumes

from tests.helpers import ROOT
from tests.quickstarts.pages import blocks, text_of
from tests.quickstarts.test_readme import check_parses


@pytest.fixture
def words() -> list[str]:
    """The command of docs/elsewhere.md."""
    (command,) = (
        block
        for block in blocks(text_of(ROOT / "docs" / "elsewhere.md"), "bash")
        if block.startswith("hf jobs run ")
    )
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
