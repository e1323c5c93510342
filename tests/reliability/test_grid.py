"""A repeat over values that is killed goes on, trains nothing again, and scores only the choice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import ROOT, run_script

pytestmark = pytest.mark.long
CONFIG = str(ROOT / "configs" / "grpo_demo.yaml")
FEW = [
    *("training.max_steps=4", "training.save_steps=2", "training.per_device_train_batch_size=16"),
    *("training.max_completion_length=24", "data.validation=10", "run.threads=1"),
    "evaluation={limit: 10, max_new_tokens: 24, every: 2}",
]
GRID = ["--seeds", "1,2", "--grid", "training.learning_rate=1e-4,1e-3"]


def kill_once(command: list[str], output: Path, there: str) -> None:
    """Start a repeat, and kill it and its run with SIGKILL once a file of a pattern is there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not list(output.glob(there)):
            assert process.poll() is None
            time.sleep(0.01)
        runs = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        for run in runs:
            run.kill()
        for run in runs:
            run.wait(60)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_killed_in_the_sweep_and_while_the_choice_is_scored(tmp_path: Path) -> None:
    output = tmp_path / "grid"
    first, second = (output / f"learning_rate-{rate}" for rate in ("1e-4", "1e-3"))
    script = [sys.executable, str(ROOT / "scripts" / "repeat.py"), "grpo", *GRID]
    command = [*script, "--config", CONFIG, "--output", str(output), *FEW]
    kill_once(command, output, "learning_rate-1e-3/seed-1/checkpoints/step-000002")
    assert not (output / "grid.json").exists()
    trained = {
        path: path.stat().st_mtime_ns
        for path in [*first.glob("seed-*/checkpoints/*"), second / "seed-1/checkpoints/step-000002"]
    }
    assert len(trained) == 5

    # Until the choice is made, nobody has looked at the test set.
    kill_once(command, output, "*/*/eval/before.jsonl")
    chosen = output / read(output / "grid.json")["chosen"]
    (other,) = {first, second} - {chosen}
    held_out = ("before", "after", "comparison")
    (looked_at,) = (path for path in output.glob("*/*/eval/*") if path.stem in held_out)
    assert looked_at == chosen / "seed-1" / "eval" / "before.jsonl"
    assert looked_at.stat().st_mtime_ns > (output / "grid.json").stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": trained, in") >= 3
    assert "step 4/4" not in done.stdout and "validation at step" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert next(iter(read(output / "seeds.json")["measures"])) == "strict"
    assert (output / "report.html").exists()
    assert not list(other.glob("seed-*/eval/*.json"))
    assert {path.name for path in other.glob("seed-*/eval/*")} == {"validation.jsonl"}

    # A run that is scored from the start ends with the same files.
    rate = chosen.name.removeprefix("learning_rate-")
    own = [*FEW, f"training.learning_rate={rate}", "training.seed=1", "run.name=usual"]
    usual, run = tmp_path / "usual", chosen / "seed-1"
    result = run_script("grpo", "--config", CONFIG, "--output", usual, *own)
    assert result.returncode == 0, result.stderr

    def files(folder: Path) -> list[str]:
        actual = (path.relative_to(folder) for path in folder.rglob("*"))
        return sorted(str(path) for path in actual if "previous" not in str(path))

    assert files(run) == files(usual)
    names = ("before.json", "after.json", "comparison.json", "before.jsonl", "after.jsonl")
    for name in (*(f"eval/{each}" for each in names), "eval/validation.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (usual / name).read_bytes(), name
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (usual / weights).read_bytes()
    facts, expected = (read(each / "environment.json") for each in (run, usual))
    assert set(facts) == set(expected) and facts["kept"] == expected["kept"]
