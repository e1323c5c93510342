"""Both scripts at exact shapes of Qwen2.5, 0.5B and 1.5B, 4-bit on the CPU, on real text (long)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base.processor import computes_in_bfloat16
from posttrain.model.shape import KNOWN
from tests.e2e.test_recipe import LOCAL
from tests.helpers import ROOT, SHARED, make_qwen, needs_shared

pytestmark = [needs_shared, pytest.mark.long, pytest.mark.timeout(2400)]

SIZES = {"0.5B": 8, "1.5B": 14}
"""GB that a script may take at the shape of a Qwen2.5."""


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"qwen2.5-{size}-random")
    shape = dict(KNOWN[f"Qwen/Qwen2.5-{size}-Instruct"])
    del shape["tie_word_embeddings"]  # make_qwen's are
    return make_qwen(folder, SHARED / "qwen2.5-tokenizer", large=size == "1.5B", **shape)


@pytest.mark.parametrize(
    ("name", "config", "overrides"),
    [
        (
            "dpo",
            "dpo_french_16gb",
            [
                *(*LOCAL["dpo"], "data.holdout=290"),  # of 300
                "data.validation=0",
                "training.per_device_train_batch_size=2",
                "training.gradient_accumulation_steps=1",
                "evaluation={limit: 2, replies: 1, max_new_tokens: 8, batch_size: 2, also: []}",
            ],
        ),
        (
            "grpo",
            "grpo_gsm8k_16gb",
            [
                *(*LOCAL["grpo"], "data.validation=0"),
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
    tmp_path: Path, model: Path, size: str, name: str, config: str, overrides: list[str]
) -> None:
    run = tmp_path / name
    script, yaml = ROOT / "scripts" / f"{name}.py", ROOT / "configs" / f"{config}.yaml"
    command = [sys.executable, script, "--config", yaml, "--output", run, f"model.name={model}"]
    if not computes_in_bfloat16():  # emulated, a step takes a quarter of an hour
        command += ["model.dtype=float32", "training.bf16=false"]
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
    assert usage.ru_maxrss / 2**20 < SIZES[size]
