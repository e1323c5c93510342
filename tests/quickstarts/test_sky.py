"""The SkyPilot task, without SkyPilot, which the project does not depend on."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from posttrain.settings.strict_yaml import read_yaml
from tests.helpers import ROOT

TASK = ROOT / "sky.yaml"


@pytest.fixture
def task() -> dict[str, Any]:
    return read_yaml(TASK)


def test_spot_recovery_and_a_run_folder_that_outlives_the_machine(task: dict[str, Any]) -> None:
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert task["file_mounts"]["/outputs"]["name"] == "${BUCKET}"
    assert task["envs"]["BUCKET"] is None  # must be given; SkyPilot refuses to start without


@pytest.mark.long  # the script that it starts is that of every other test
def test_its_commands_run(task: dict[str, Any], tmp_path: Path) -> None:
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
