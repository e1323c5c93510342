"""What DPO trains on, and what its losses compute: each trains, and is what its formula says."""

import math
from pathlib import Path
from typing import Any

import pytest

from eval.preference import Pair
from posttrain.settings import DPOSettings
from tests.e2e import trainers
from tests.helpers import SHARED, make_qwen, needs_shared

SIGMOID = "training.loss_type=[sigmoid]"
BETA = 0.1
LN2 = math.log(2)
SIDES = ("chosen", "rejected")

# The loss where policy and reference agree, so that every log-ratio is 0. sft has no such value.
FIRST_LOSS = {
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "robust": LN2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "hinge": 1.0,
    "ipo": (1 / (2 * BETA)) ** 2,
    "sppo_hard": 2 * (0.5 / BETA) ** 2,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * LN2 + 0.5,
    # KL((1/2, 1/2) || (1 - e, e)) with e = label_smoothing
    "exo_pair": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
}


def train(folder: Path, *overrides: str, steps: int = 1) -> tuple[Any, list[float]]:
    chosen = ["training.precompute_ref_log_probs=true", f"training.beta={BETA}"]
    chosen += [f"training.max_steps={steps}", *overrides]
    trainer = trainers.build("dpo", folder, *chosen).trainer
    trainer.train()
    return trainer, [row["loss"] for row in trainers.logged(trainer)]


@pytest.mark.parametrize("name", FIRST_LOSS)
def test_first_loss_is_the_formulas(tmp_path: Path, name: str) -> None:
    more = ["training.label_smoothing=0.1"] if name in ("exo_pair", "robust") else []
    trainer, (loss,) = train(tmp_path, f"training.loss_type=[{name}]", *more)
    assert loss == pytest.approx(FIRST_LOSS[name], rel=1e-5)
    assert 0 < trainer.state.log_history[0]["grad_norm"] < math.inf


def test_every_loss_of_the_settings_is_tried_here() -> None:
    (choices,) = (
        DPOSettings.model_fields["training"]
        .annotation.model_fields["loss_type"]
        .annotation.__args__
    )
    assert set(choices.__args__) == {*FIRST_LOSS, "sft"}


def test_sft_beside_the_preference_is_weighted(tmp_path: Path) -> None:
    """The mean negative log-probability of the chosen tokens, as RPO adds (arxiv 2404.19733)."""
    both = ["training.loss_type=[sigmoid, sft]", "training.loss_weights=[1.0, 0.25]"]
    trainer, (loss,) = train(tmp_path, *both)
    _, (sft,) = train(tmp_path / "sft", "training.loss_type=[sft]")
    assert loss == pytest.approx(LN2 + 0.25 * sft, abs=1e-5)
    rows = trainer.train_dataset
    tokens = sum(len(ids) for ids in rows["chosen_ids"])
    assert sft == pytest.approx(-sum(rows["ref_chosen_logps"]) / tokens, abs=1e-4)


def test_ld_alpha_weighs_the_tokens_beyond_the_shorter_reply(tmp_path: Path) -> None:
    """LD-DPO: log p(shared length) + alpha log p(rest), on both sides of the ratio."""
    import torch

    scores = {}
    for alpha in (0.0, 0.3, 1.0):
        given = (f"training.ld_alpha={alpha}", SIGMOID)
        trainer, losses = train(tmp_path / str(alpha), *given, steps=2)
        assert losses[0] == pytest.approx(LN2, abs=1e-5)
        assert losses[1] < losses[0]
        rows = trainer.train_dataset
        scores[alpha] = torch.tensor([rows[f"ref_{side}_logps"] for side in SIDES])
    expected = scores[0.0] + 0.3 * (scores[1.0] - scores[0.0])
    assert torch.allclose(scores[0.3], expected, rtol=0, atol=1e-5)
    lengths = [torch.tensor([len(ids) for ids in rows[f"{side}_ids"]]) for side in SIDES]
    tail = scores[1.0] - scores[0.0]
    longer = torch.stack([lengths[0] > lengths[1], lengths[1] > lengths[0]])
    assert (tail[~longer] == 0).all()
    assert (tail < -1e-3).sum() > 2  # nats; enough to see 0.3 of, at the tolerance above
    plain, _ = train(tmp_path / "plain", SIGMOID)
    assert torch.allclose(scores[1.0][0], torch.tensor(plain.train_dataset["ref_chosen_logps"]))


def batch_of(trainer: Any) -> Any:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(16)])


def test_loss_equals_the_formula(tmp_path: Path) -> None:
    """-log sigmoid(beta (log pi_c/ref_c - log pi_r/ref_r)) from an independent float64 model."""
    import torch

    beta = 0.5  # trl's default is 0.1
    built = trainers.build("dpo", tmp_path, SIGMOID, f"training.beta={beta}")
    trainer, model = built.trainer, built.model
    trainers.move(model)
    model.save_pretrained(tmp_path / "adapter")
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
    assert abs(expected - LN2) > 1e-3  # the adapter does change something
    loss = trainer.compute_loss(model.train(), batch_of(trainer))
    assert float(loss.detach()) == pytest.approx(expected, abs=2e-5)


@needs_shared
def test_token_ids_trained_on(tmp_path: Path) -> None:
    """One system turn, a masked prompt, one EOS ending each reply and nothing scored after it."""
    folder = make_qwen(tmp_path / "model", SHARED / "qwen2.5-tokenizer", **trainers.TINY)
    built = trainers.build(
        *("dpo", tmp_path, SIGMOID),
        f"model.name={folder}",
        "model.max_seq_length=2048",
        f"data.train.path={SHARED / 'french-preferences' / 'preferences.json'}",
        "data.columns.prompt=instruction",
        *("data.validation=0", "training.precompute_ref_log_probs=false"),  # not looked at here
    )
    tokenizer, pairs, batch = built.tokenizer, built.rows, batch_of(built.trainer)
    assert tokenizer.eos_token == "<|im_end|>"
    system = f"<|im_start|>system\n{built.settings.prompt.system}<|im_end|>\n"
    replies = [(pair, pair.chosen) for pair in pairs] + [(pair, pair.rejected) for pair in pairs]
    for row, (pair, reply) in enumerate(replies):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length].tolist()
        scored = batch["completion_mask"][row, :length].bool().tolist()
        first = scored.index(True)
        assert all(scored[first:])
        assert batch["completion_mask"][row, length:].sum() == 0
        user = f"<|im_start|>user\n{pair.prompt[-1]['content']}<|im_end|>\n"
        prompt = tokenizer(f"{system}{user}<|im_start|>assistant\n")["input_ids"]
        assert ids[:first] == prompt
        assert ids[first:].count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids[first:]) == f"{reply}<|im_end|>"
