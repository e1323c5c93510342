"""The losses that can be chosen: each trains, and starts at what its formula says."""

import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.settings import DPOSettings
from tests.e2e import trainers

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own while a trainer is built
BETA = 0.1
LN2 = math.log(2)

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
    chosen = [f"training.beta={BETA}", f"training.max_steps={steps}", *overrides]
    trainer = trainers.build(
        "dpo", folder, "training.precompute_ref_log_probs=true", *chosen
    ).trainer
    trainer.train()
    return trainer, [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("name", FIRST_LOSS)
def test_first_loss_is_the_formulas(tmp_path: Path, name: str) -> None:
    smoothing = "training.label_smoothing=0.1"
    more = [smoothing] if name in ("exo_pair", "robust") else []
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
        trainer, losses = train(
            tmp_path / str(alpha),
            f"training.ld_alpha={alpha}",
            "training.loss_type=[sigmoid]",
            steps=2,
        )
        assert losses[0] == pytest.approx(LN2, abs=1e-5)
        assert losses[1] < losses[0]
        scores[alpha] = torch.tensor(
            [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
        )
        rows = trainer.train_dataset
    expected = scores[0.0] + 0.3 * (scores[1.0] - scores[0.0])
    assert torch.allclose(scores[0.3], expected, rtol=0, atol=1e-5)
    lengths = [
        (len(c), len(r)) for c, r in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)
    ]
    tail = scores[1.0] - scores[0.0]
    for number, (chosen, rejected) in enumerate(lengths):
        for side, longer in ((0, chosen > rejected), (1, rejected > chosen)):
            assert longer or tail[side, number] == 0
    assert (tail < -1e-3).sum() > 2  # nats; enough to see 0.3 of, at the tolerance above
    plain, _ = train(tmp_path / "plain", "training.loss_type=[sigmoid]")
    assert torch.allclose(scores[1.0][0], torch.tensor(plain.train_dataset["ref_chosen_logps"]))
