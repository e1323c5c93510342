"""Proof that GRPO learns on a GPU: a model of 26 M parameters, trained here, then improved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, demo_command, read
from tests.reliability.inside import succeed

pytestmark = [pytest.mark.gpu, pytest.mark.long, pytest.mark.timeout(3600)]

MINUTES = os.environ.get("MEDIUM_MODEL_MINUTES", "4")  # of pre-training


def test_grpo_improves_a_mid_size_model(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "demo_model.py")
    chosen = ["--size", "medium", "--minutes", MINUTES, "--output", str(tmp_path)]
    made = subprocess.run(
        [sys.executable, script, *chosen], capture_output=True, text=True, timeout=2400
    )
    assert made.returncode == 0, made.stderr[-4000:]
    rows, run = tmp_path / "demo_data", tmp_path / "run"
    given = demo_command(
        *("grpo", run),
        f"model.name={tmp_path / 'demo_model'}",
        *("model.dtype=bfloat16", "model.max_seq_length=384", "training.bf16=true"),
        f"data.train={{path: '{rows / 'problems_train.jsonl'}'}}",
        f"data.eval={{path: '{rows / 'problems_test.jsonl'}'}}",
        "data.overlong=drop",
        *("training.max_steps=60", "training.learning_rate=5.0e-4"),
        *("training.max_completion_length=128", "evaluation.max_new_tokens=128"),
    )
    result = succeed("grpo", *given, timeout=1800)
    compared = read(run / "eval" / "comparison.json")["strict"]
    output = f"{made.stdout}\n{result.stdout}"
    assert compared["difference"] > 0.1, output
    assert compared["p_value"] < 1e-6, output
