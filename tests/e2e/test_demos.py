"""The two demos: the real scripts on the embedded model, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, run_script

CONFIGS = {name: ROOT / "configs" / f"{name}_demo.yaml" for name in ("grpo", "dpo")}
RECORD = ["config.yaml", "environment.json", "metrics.jsonl", "adapter/adapter_model.safetensors"]


def read(run: Path, name: str) -> Any:
    return json.loads((run / "eval" / f"{name}.json").read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_grpo_demo_learns_to_compute(tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    result = run_script("grpo", "--config", CONFIGS["grpo"], "--output", run)
    assert result.returncode == 0, result.stderr
    before, after, comparison = (read(run, name) for name in ("before", "after", "comparison"))
    assert before["strict"]["n"] == 300
    assert before["strict"]["value"] <= 0.45
    assert after["strict"]["value"] >= 0.85
    assert comparison["strict"]["p_value"] < 1e-6
    assert comparison["strict"]["low"] > 0
    for name in (*RECORD, "samples.jsonl"):
        assert (run / name).stat().st_size > 0
    sample = rows(run / "samples.jsonl")[0]
    assert {"completion", "answer", "reward/format", "reward/correctness"} <= set(sample)
    assert "No GPU here" in result.stdout
    assert "strict accuracy" in result.stdout
    finished = run_script("grpo", "--config", CONFIGS["grpo"], "--output", run)
    assert finished.returncode == 0
    assert "finished run" in finished.stdout


def test_dpo_demo_learns_french(tmp_path: Path) -> None:
    run = tmp_path / "dpo"
    result = run_script("dpo", "--config", CONFIGS["dpo"], "--output", run)
    assert result.returncode == 0, result.stderr
    before, after = read(run, "before"), read(run, "after")
    assert before["reward_accuracy"]["value"] == 0.5  # the reference prefers nothing over itself
    assert after["reward_accuracy"]["value"] >= 0.95
    assert 0.35 <= before["french_share"]["value"] <= 0.65
    assert after["french_share"]["value"] >= 0.95
    assert after["reward_margin"]["low"] > 0
    first = rows(run / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    for name in RECORD:
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_without_training_nothing_changes(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    limits = ["evaluation.limit=40"] + (["evaluation.replies=40"] if name == "dpo" else [])
    result = run_script(
        name, "--config", CONFIGS[name], "--output", run, "training.max_steps=0", *limits
    )
    assert result.returncode == 0, result.stderr
    for measure, values in read(run, "comparison").items():
        assert values["difference"] == 0, measure
        assert values["p_value"] == 1


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    few = ["evaluation.limit=8", "training.max_steps=6", "training.save_steps=2"]
    few += ["training.per_device_train_batch_size=16"]
    few += ["evaluation.replies=4"] if name == "dpo" else []
    arguments = [name, "--config", CONFIGS[name], "--output", run, *few]
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments[1:]]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = (run / "eval" / "before.jsonl").read_bytes()

    result = run_script(*arguments)
    assert result.returncode == 0, result.stderr
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "learning_rate" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (run / "eval" / "before.jsonl").read_bytes() == before
