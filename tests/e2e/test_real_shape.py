"""Both scripts at the exact shape of Qwen2.5-0.5B, 4-bit on the CPU, on real text (long)."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, SHARED, make_qwen, needs_shared

pytestmark = [needs_shared, pytest.mark.long, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2.5-0.5b-random")
    return make_qwen(folder, SHARED / "qwen2.5-tokenizer")


def test_parameter_count(model: Path) -> None:
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    assert sum(math.prod(shape) for shape in shapes) == 494_032_768


@pytest.mark.parametrize(
    ("name", "config", "overrides"),
    [
        (
            "dpo",
            "dpo_french_16gb",
            [
                f"data.train.path={SHARED / 'french-preferences' / 'preferences.json'}",
                "data.columns.prompt=instruction",
                "data.holdout=100",
                "training.per_device_train_batch_size=2",
                "training.gradient_accumulation_steps=1",
                "evaluation={limit: 2, replies: 1, max_new_tokens: 8, batch_size: 2, also: []}",
            ],
        ),
        (
            "grpo",
            "grpo_gsm8k_16gb",
            [
                f"data.train={{path: '{SHARED / 'gsm8k' / 'train.jsonl'}'}}",
                f"data.eval={{path: '{SHARED / 'gsm8k' / 'test.jsonl'}'}}",
                "training.per_device_train_batch_size=4",
                "training.gradient_accumulation_steps=1",
                "training.num_generations=4",
                "training.max_completion_length=32",
                "evaluation={limit: 2, max_new_tokens: 8}",
            ],
        ),
    ],
)
def test_one_step(
    tmp_path: Path,
    model: Path,
    name: str,
    config: str,
    overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / name
    script, yaml = ROOT / "scripts" / f"{name}.py", ROOT / "configs" / f"{config}.yaml"
    command = [sys.executable, script, "--config", yaml, "--output", run, f"model.name={model}"]
    log = tmp_path / "log"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*map(str, command), "training.max_steps=1", *overrides],
            stdout=file,
            stderr=file,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)  # the peak memory of this process alone
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text(encoding="utf-8")
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert step["step"] == 1
    peak = usage.ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\n{name} at the real shape: {step['seconds']:.0f} s a step, peak {peak:.2f} GB")
    assert peak < 8
