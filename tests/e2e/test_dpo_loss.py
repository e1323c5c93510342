"""What DPO trains on and what it computes, held against the formula."""

import math
from pathlib import Path
from typing import Any

import pytest

from eval.preference import Pair
from posttrain.data.pairs import load_pair_set
from posttrain.model import policy
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings
from posttrain.settings.command import load_settings
from scripts import dpo
from tests.helpers import ROOT, SHARED, make_qwen, needs_shared

CONFIG = ROOT / "configs" / "dpo_demo.yaml"
# The libraries' own warnings while a trainer is built are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")


def build(tmp_path: Path, *overrides: str) -> tuple[Any, Any, Any, DPOSettings, list[Pair]]:
    overrides = ("training.loss_type=[sigmoid]", *overrides)
    settings = load_settings(DPOSettings, CONFIG, list(overrides))
    pairs = load_pair_set(settings.data, settings.prompt).train
    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, verbose=False)
    run = RunFolder(tmp_path / "run")
    trainer, _ = dpo.build_trainer(model, tokenizer, pairs[:16], settings, run)
    return trainer, model, tokenizer, settings, pairs[:16]


def loss_of(trainer: Any, model: Any) -> float:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(16)])
    model.train()
    return float(trainer.compute_loss(model, batch).detach())


def test_first_loss_is_ln_2(tmp_path: Path) -> None:
    trainer, model, *_ = build(tmp_path)
    assert loss_of(trainer, model) == pytest.approx(math.log(2), abs=1e-6)


def test_reference_is_the_base_model_with_the_adapter_off(tmp_path: Path) -> None:
    _, model, *_ = build(tmp_path)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_equals_the_formula(tmp_path: Path, beta: float) -> None:
    """-log sigmoid(beta (log pi_c/ref_c - log pi_r/ref_r)) from an independent float64 model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer, model, tokenizer, settings, pairs = build(tmp_path, f"training.beta={beta}")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(ROOT / settings.model.name, dtype=torch.float64)
    exact = PeftModel.from_pretrained(base, tmp_path / "adapter").double().eval()

    def log_prob(pair: Pair, reply: str) -> float:
        prompt = tokenizer.apply_chat_template(
            list(pair.prompt), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        answer = [*tokenizer(reply)["input_ids"], tokenizer.eos_token_id]
        logits = exact(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        places = range(len(prompt), len(prompt) + len(answer))
        return sum(float(logits[i - 1, token]) for i, token in zip(places, answer, strict=True))

    losses = []
    with torch.no_grad():
        for pair in pairs:
            policy_gap = log_prob(pair, pair.chosen) - log_prob(pair, pair.rejected)
            with exact.disable_adapter():
                reference_gap = log_prob(pair, pair.chosen) - log_prob(pair, pair.rejected)
            losses.append(math.log1p(math.exp(-beta * (policy_gap - reference_gap))))
    expected = sum(losses) / len(losses)
    assert abs(expected - math.log(2)) > 1e-3  # the adapter does change something
    assert loss_of(trainer, model) == pytest.approx(expected, abs=2e-5)


@needs_shared
def test_token_ids_trained_on(tmp_path: Path) -> None:
    """One system turn, a masked prompt, one EOS ending each reply and nothing scored after it."""
    folder = make_qwen(
        tmp_path / "model",
        SHARED / "qwen2.5-tokenizer",
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    trainer, _, tokenizer, settings, pairs = build(
        tmp_path,
        f"model.name={folder}",
        "model.max_seq_length=2048",
        f"data.train.path={SHARED / 'french-preferences' / 'preferences.json'}",
        "data.columns.prompt=instruction",
        "data.validation=0",
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(16)])
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    replies = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    for row, reply in enumerate(replies):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length].tolist()
        scored = batch["completion_mask"][row, :length].bool().tolist()
        first = scored.index(True)
        prompt, answer = ids[:first], ids[first:]
        assert all(scored[first:])
        assert batch["completion_mask"][row, length:].sum() == 0
        assert tokenizer.decode(prompt).count("<|im_start|>system\n") == 1
        assert settings.prompt.system in tokenizer.decode(prompt)
        assert prompt.count(start) == 3 and prompt.count(end) == 2  # system, user, assistant
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id == end
        assert tokenizer.decode(answer[:-1]) == reply
