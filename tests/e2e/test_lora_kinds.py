"""Every kind of adapter starts as the model it was put on, learns, and is saved for that model."""

import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.render import render
from posttrain.model import policy
from tests.e2e import trainers
from tests.e2e.trainers import plain

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own while a trainer is built

KINDS = {
    "default": [],
    "rslora": ["lora.use_rslora=true"],
    "dora": ["lora.use_dora=true"],
}


class Trained:
    """Two steps of DPO on 16 pairs."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        short = ("training.max_steps=2", "training.loss_type=[sigmoid]", "training.save_steps=1")
        at_each_step = "training.precompute_ref_log_probs=false"
        built = trainers.build("dpo", folder, *short, at_each_step, *overrides)
        self.pairs, self.model, self.tokenizer = built.rows, built.model, built.tokenizer
        self.start = self.logits(self.model)
        with self.model.disable_adapter():
            self.reference = self.logits(self.model)
        built.trainer.train()
        log = built.trainer.state.log_history
        self.losses = [row["loss"] for row in log if "loss" in row]
        policy.save_adapter(self.model, self.tokenizer, folder / "adapter")
        self.trained = self.logits(self.model)
        with self.model.disable_adapter():
            self.reference_after = self.logits(self.model)

    def logits(self, model: Any) -> Any:
        import torch

        texts = [render(self.tokenizer, p.prompt) + p.chosen for p in self.pairs[:4]]
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        training = model.training
        model.eval()
        with torch.no_grad():
            result = [model(torch.tensor([row])).logits[0].float() for row in rows]
        model.train(training)
        return torch.cat(result)


def distance(first: Any, second: Any) -> float:
    return float((first - second).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_model_and_is_saved_for_it(tmp_path: Path, kind: str) -> None:
    trained = Trained(tmp_path, *KINDS[kind])
    original = trained.logits(plain())
    assert distance(trained.start, original) < 1e-4
    assert distance(trained.reference, original) < 1e-4
    assert distance(trained.reference_after, original) < 1e-4
    assert trained.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert trained.losses[1] < trained.losses[0] - 1e-3
    assert distance(trained.trained, original) > 1e-2
    loaded = plain(tmp_path / "adapter")
    assert distance(trained.logits(loaded), trained.trained) < 1e-4
    assert list(trained.model.peft_config) == ["default"]
