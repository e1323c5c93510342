"""What DPO trains on and what it computes, held against the formula."""

import math
from pathlib import Path
from typing import Any

import pytest

from eval.preference import Pair
from tests.e2e import trainers
from tests.helpers import SHARED, make_qwen, needs_shared

# The libraries' own warnings while a trainer is built are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")


def build(tmp_path: Path, *overrides: str) -> trainers.Built:
    return trainers.build("dpo", tmp_path, "training.loss_type=[sigmoid]", *overrides)


def loss_of(trainer: Any, model: Any) -> float:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(16)])
    model.train()
    return float(trainer.compute_loss(model, batch).detach())


def test_loss_equals_the_formula(tmp_path: Path) -> None:
    """-log sigmoid(beta (log pi_c/ref_c - log pi_r/ref_r)) from an independent float64 model."""
    import torch

    beta = 0.5  # trl's default is 0.1
    built = build(tmp_path, f"training.beta={beta}")
    trainers.move(built.model)
    built.model.save_pretrained(tmp_path / "adapter")
    exact = trainers.plain(tmp_path / "adapter", dtype=torch.float64)

    def gap(pair: Pair) -> float:
        sides = (pair.chosen, pair.rejected)
        chosen, rejected = (trainers.log_prob(exact, built.tokenizer, pair, s) for s in sides)
        return chosen - rejected

    losses = []
    for pair in built.rows:
        with exact.disable_adapter():
            reference = gap(pair)
        losses.append(math.log1p(math.exp(-beta * (gap(pair) - reference))))
    expected = sum(losses) / len(losses)
    assert abs(expected - math.log(2)) > 1e-3  # the adapter does change something
    assert loss_of(built.trainer, built.model) == pytest.approx(expected, abs=2e-5)


@needs_shared
def test_token_ids_trained_on(tmp_path: Path) -> None:
    """One system turn, a masked prompt, one EOS ending each reply and nothing scored after it."""
    folder = make_qwen(tmp_path / "model", SHARED / "qwen2.5-tokenizer", **trainers.TINY)
    built = build(
        tmp_path,
        f"model.name={folder}",
        "model.max_seq_length=2048",
        f"data.train.path={SHARED / 'french-preferences' / 'preferences.json'}",
        "data.columns.prompt=instruction",
        *("data.validation=0", "training.precompute_ref_log_probs=false"),  # not looked at here
    )
    trainer, tokenizer, pairs = built.trainer, built.tokenizer, built.rows
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
        assert built.settings.prompt.system in tokenizer.decode(prompt)
        assert prompt.count(start) == 3 and prompt.count(end) == 2  # system, user, assistant
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id == end
        assert tokenizer.decode(answer[:-1]) == reply
