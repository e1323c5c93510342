"""Every kind of adapter starts as the model it was put on, learns, and is saved for that model."""

import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.pairs import load_pair_set
from posttrain.data.render import render
from posttrain.model import policy
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings
from posttrain.settings.command import load_settings
from scripts import dpo
from tests.helpers import ROOT

CONFIG = ROOT / "configs" / "dpo_demo.yaml"
MODEL = ROOT / "assets" / "demo_model"
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own while a trainer is built

KINDS = {
    "default": [],
    "rslora": ["lora.use_rslora=true"],
    "dora": ["lora.use_dora=true"],
}


def settings_of(*overrides: str) -> DPOSettings:
    short = ("training.max_steps=2", "training.loss_type=[sigmoid]", "training.save_steps=1")
    at_each_step = "training.precompute_ref_log_probs=false"
    return load_settings(DPOSettings, CONFIG, [*short, at_each_step, *overrides])


class Trained:
    """Two steps of DPO on 16 pairs."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        settings = settings_of(*overrides)
        self.pairs = load_pair_set(settings.data, settings.prompt).train[:16]
        self.model, self.tokenizer = policy.load(
            settings.model, settings.lora, settings.training, verbose=False
        )
        self.start = self.logits(self.model)
        run = RunFolder(folder / "run")
        self.trainer, _ = dpo.build_trainer(self.model, self.tokenizer, self.pairs, settings, run)
        with self.model.disable_adapter():
            self.reference = self.logits(self.model)
        self.trainer.train()
        rows = [row for row in self.trainer.state.log_history if "loss" in row]
        self.losses = [row["loss"] for row in rows]
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


def plain(folder: Path) -> Any:
    """The untouched demo model with a saved adapter, by transformers and peft alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_model_and_is_saved_for_it(tmp_path: Path, kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    trained = Trained(tmp_path, *KINDS[kind])
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    original = trained.logits(base)
    assert distance(trained.start, original) < 1e-4
    assert distance(trained.reference, original) < 1e-4
    assert distance(trained.reference_after, original) < 1e-4
    assert trained.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert trained.losses[1] < trained.losses[0] - 1e-3
    assert distance(trained.trained, original) > 1e-2
    loaded = plain(tmp_path / "adapter")
    assert distance(trained.logits(loaded), trained.trained) < 1e-4
    assert list(trained.model.peft_config) == ["default"]
