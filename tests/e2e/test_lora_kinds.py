"""Every kind of adapter starts as the model it was put on, learns, and is saved for that model."""

import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.render import render
from posttrain.model import policy
from tests.e2e import trainers
from tests.e2e.trainers import plain

KINDS = {"default": [], "rslora": ["lora.use_rslora=true"], "dora": ["lora.use_dora=true"]}


def distance(first: Any, second: Any) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_model_and_is_saved_for_it(tmp_path: Path, kind: str) -> None:
    """Two steps of DPO on 16 pairs."""
    import torch

    short = ("training.max_steps=2", "training.loss_type=[sigmoid]", "training.save_steps=1")
    at_each_step = "training.precompute_ref_log_probs=false"
    built = trainers.build("dpo", tmp_path, *short, at_each_step, *KINDS[kind])
    model, tokenizer = built.model, built.tokenizer
    texts = [render(tokenizer, pair.prompt) + pair.chosen for pair in built.rows[:4]]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def logits(model: Any) -> Any:
        training = model.training
        model.eval()
        with torch.no_grad():
            result = [model(torch.tensor([row])).logits[0].float() for row in rows]
        model.train(training)
        return torch.cat(result)

    original = logits(plain())
    assert distance(logits(model), original) < 1e-4
    built.trainer.train()
    losses = [row["loss"] for row in trainers.logged(built.trainer)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[1] < losses[0] - 1e-3
    policy.save_adapter(model, tokenizer, tmp_path / "adapter")
    assert distance(logits(model), original) > 1e-2
    assert distance(logits(plain(tmp_path / "adapter")), logits(model)) < 1e-4
    with model.disable_adapter():
        assert distance(logits(model), original) < 1e-4
    assert list(model.peft_config) == ["default"]
