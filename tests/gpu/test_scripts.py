"""Both scripts at the exact shape of Qwen2.5-0.5B, in bfloat16 and in a T4's float16."""

import math
from pathlib import Path

import pytest

from tests.gpu.helpers import real_data, real_model
from tests.helpers import ROOT, needs_shared
from tests.reliability.inside import adapter, steps, succeed

pytestmark = [needs_shared, pytest.mark.gpu, pytest.mark.timeout(1200)]

EVALUATION = {
    "dpo": "evaluation={limit: 8, replies: 4, max_new_tokens: 16, batch_size: 4}",
    "grpo": "evaluation={limit: 8, max_new_tokens: 16, batch_size: 8}",
}
STEPS = {"16gb": 3, "t4": 8}  # the loss scaler of float16 skips the first few


@pytest.mark.parametrize("card", STEPS)
@pytest.mark.parametrize(("task", "name"), [("dpo", "dpo_french"), ("grpo", "grpo_gsm8k")])
def test_few_steps(task: str, name: str, card: str, tmp_path: Path) -> None:
    model, run = real_model(tmp_path), tmp_path / "run"
    overrides = [*real_data(task, model), EVALUATION[task], f"training.max_steps={STEPS[card]}"]
    if task == "grpo":  # rewards with a spread, which random weights do not earn
        (tmp_path / "rewards.py").write_text(
            "def spread(completions, **_):\n"
            "    return [float(7919 * row % 5) for row in range(len(completions))]\n"
        )
        overrides += [f"rewards={{'{tmp_path}/rewards.py:spread': 1.0}}"]
        overrides += ["training.max_completion_length=64"]
        overrides += ["training.gradient_accumulation_steps=2"]  # 256 rollouts are not needed here
    config = ROOT / "configs" / f"{name}_{card}.yaml"
    succeed(task, "--config", config, "--output", run, *overrides, timeout=1100)
    rows = steps(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS[card] + 1))
    assert all(math.isfinite(row["loss"]) for row in rows)
    for row in rows[-2:]:
        assert row["grad_norm"] is not None and 0 < row["grad_norm"] < math.inf
    weights = adapter(run)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    assert any(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)
