"""The two demos: the real scripts on the embedded model, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, run_script

CONFIGS = {name: ROOT / "configs" / f"{name}_demo.yaml" for name in ("grpo", "dpo")}
RECORD = ["config.yaml", "environment.json", "metrics.jsonl", "adapter/adapter_model.safetensors"]
RECORD += ["report.html", "plots/scores.png"]


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
    assert first["rewards/margins"] == 0
    for name in RECORD:
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_without_training_nothing_changes(tmp_path: Path, name: str) -> None:
    """Nor are scores believed that stand in the folder without a checkpoint of the same run."""
    run = tmp_path / name
    (run / "eval").mkdir(parents=True)
    for stale in ("before", "before_replies"):
        (run / "eval" / f"{stale}.jsonl").write_text('{"of": "another run"}\n', encoding="utf-8")
    limits = ["evaluation.limit=40"] + (["evaluation.replies=40"] if name == "dpo" else [])
    result = run_script(
        name, "--config", CONFIGS[name], "--output", run, "training.max_steps=0", *limits
    )
    assert result.returncode == 0, result.stderr
    for measure, values in read(run, "comparison").items():
        assert values["difference"] == 0, measure
        assert values["p_value"] == 1
