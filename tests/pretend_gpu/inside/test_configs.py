"""The configs of cards, as they are but for the model, the data and the size of a step."""

import math
from pathlib import Path

import pytest

from posttrain.settings.strict_yaml import read_yaml
from tests.helpers import CONFIGS, read
from tests.pretend_gpu.card import BFLOAT16
from tests.reliability.inside import adapter, leave_with, steps

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]
CARD = "16gb" if BFLOAT16 else "t4"
DEMO = {
    "dpo": [
        "data.train={path: assets/demo_data/preferences.jsonl, limit: 300}",
        *("data.columns={}", "data.holdout=20", "data.validation=4"),
        "training.gradient_accumulation_steps=2",
        "evaluation={limit: 8, replies: 4, max_new_tokens: 16, also: []}",
    ],
    "grpo": [
        "data.train={path: assets/demo_data/problems_train.jsonl}",
        "data.eval={path: assets/demo_data/problems_test.jsonl, limit: 8}",
        *("training.max_completion_length=32", "training.per_device_train_batch_size=8"),
        *("training.gradient_accumulation_steps=2", "evaluation.max_new_tokens=32"),
    ],
}
STEPS = 2 if BFLOAT16 else 8  # the loss scaler of float16 skips the first few
CARDS = [path for path in CONFIGS if path.stem.endswith(CARD)]


@pytest.mark.parametrize("config", CARDS, ids=lambda path: path.stem)
def test_card_config(config: Path, tmp_path: Path) -> None:
    name = config.stem.partition("_")[0]
    run = tmp_path / name
    small = [f"training.max_steps={STEPS}", f"training.save_steps={STEPS}"]
    chosen = ["model.name=assets/demo_model", "model.max_seq_length=256", *small, *DEMO[name]]
    if "chat_template_kwargs" in read_yaml(config)["prompt"]:
        chosen.append("prompt.chat_template_kwargs={}")  # the demo's template reads none
    if "steps_per_generation" in read_yaml(config)["training"]:
        chosen.append("training.steps_per_generation=1")  # still in two parts
    assert leave_with(name, run, *chosen, config=config) == 0
    trained = steps(run)
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert all(math.isfinite(row["loss"]) for row in trained)
    assert 0 < trained[-1]["grad_norm"] < math.inf
    weights = adapter(run)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert any(bool(weight.any()) for key, weight in weights.items() if "lora_B" in key)
    changed = read(run / "environment.json")["changed_arguments"]
    assert not {"bf16", "fp16", "optim", "loss_type"} & set(changed)
