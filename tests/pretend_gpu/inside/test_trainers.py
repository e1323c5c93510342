"""Unsloth's GPU trainers are the ones that train, in every precision and with every adapter."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import DEMO_MODEL, Capsys, demo_settings, make_adapter
from tests.pretend_gpu.card import BFLOAT16
from tests.reliability.inside import adapter, leave_unreported, losses, steps

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
BOTH = pytest.mark.parametrize("name", ["dpo", "grpo"])
HALF = (
    ["model.dtype=bfloat16", "training.bf16=true"]
    if BFLOAT16
    else ["model.dtype=float16", "training.fp16=true"]
)
PRECISIONS = {"float32": [], "16bit": HALF, "4bit": [*HALF, "model.load_in_4bit=true"]}


def trained(name: str, run: Path, *overrides: str) -> list[dict[str, Any]]:
    """The rows of a run of two steps, whose adapter is finite and not the one it began with."""
    small = ["training.max_steps=2", "training.save_steps=2"]
    small += ["training.per_device_train_batch_size=8"]
    assert leave_unreported(name, run, *small, *overrides) == 0
    result = steps(run)
    assert [row["step"] for row in result] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in result)
    weights = adapter(run)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    return result


@pytest.mark.parametrize(
    ("precision", "runs"),
    [("4bit", 1), *(pytest.param(each, 2, marks=pytest.mark.long) for each in PRECISIONS)],
)
def test_first_loss_of_dpo_is_ln_2(
    precision: str, runs: int, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new adapter changes nothing, so policy and reference agree: scored now, and from disk,
    which tests/e2e/test_reference_cache.py has without a card."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    for kept in (False, True)[:runs]:
        requested = [*PRECISIONS[precision], "training.loss_type=[sigmoid]", "data.train.limit=300"]
        run = tmp_path / f"{precision}-{kept}"
        result = trained("dpo", run, *requested)
        output = capsys.readouterr().out
        assert ("Reference log-probabilities: computed" in output) != kept
        # In float16 the CPU's products round by the width of the batch, which is another one here.
        near = 1e-5 if BFLOAT16 or precision == "float32" else 1e-3
        assert result[0]["loss"] == pytest.approx(math.log(2), abs=near)
        assert abs(result[0]["rewards/margins"]) < 10 * near
        assert result[1]["loss"] < math.log(2) or not BFLOAT16  # a scaler skips its first steps


@pytest.mark.parametrize(
    ("way", "precision"),
    [
        ("at each step", "4bit"),
        pytest.param("kl", "4bit", marks=pytest.mark.long),
        pytest.param("precomputed", "4bit", marks=pytest.mark.long),
        pytest.param("at each step", "float32", marks=pytest.mark.long),
        pytest.param("kl", "float32", marks=pytest.mark.long),
    ],
)
def test_reference_is_the_adapter_that_a_run_starts_from(
    way: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss and KL term are those of no change, which the bare base would not give."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    start = make_adapter(DEMO_MODEL, tmp_path / "start", spread=0.05)
    given = [*PRECISIONS[precision], f"model.adapter={start}"]
    near = 1e-5 if BFLOAT16 or precision == "float32" else 1e-3
    if way == "kl":
        first, second = trained("grpo", tmp_path / "grpo", *given, "training.beta=0.1")
        assert abs(first["kl"]) < near
        assert second["kl"] > first["kl"] or not BFLOAT16
        return
    kept = f"training.precompute_ref_log_probs={str(way == 'precomputed').lower()}"
    given += [kept, "training.loss_type=[sigmoid]", "data.train.limit=300"]
    first, second = trained("dpo", tmp_path / "dpo", *given)
    assert first["loss"] == pytest.approx(math.log(2), abs=near)
    assert abs(first["rewards/chosen"]) < 10 * near > abs(first["rewards/rejected"])
    assert second["loss"] < first["loss"] or not BFLOAT16  # a scaler skips its first steps


KINDS = {
    "rslora": ["lora.use_rslora=true"],
    "dora": ["lora.use_dora=true"],
    "dropout": ["lora.dropout=0.1"],
}


@BOTH
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_adapter(kind: str, name: str, tmp_path: Path) -> None:
    result = trained(name, tmp_path / name, *KINDS[kind])
    assert any(row["grad_norm"] > 0 for row in result)


@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.beta=0.04"],
        ["training.num_iterations=2"],
        ["training.beta=0.04", "training.num_iterations=2", "training.steps_per_generation=2"],
    ],
    ids=["kl", "two iterations", "both"],
)
def test_ways_of_grpo(overrides: list[str], tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    few = ["training.max_steps=4", "training.save_steps=4"]
    assert leave_unreported("grpo", run, *few, *overrides) == 0
    assert len(losses(run)) == 4 and all(math.isfinite(loss) for loss in losses(run))
    kl = any(row.get("kl", 0) > 0 for row in steps(run))
    assert kl == ("training.beta=0.04" in overrides)


@pytest.mark.long
def test_a_scored_reply_beyond_the_limit_is_not_cut() -> None:
    """Unsloth cuts what is longer than the length it was loaded for, without a word."""
    import torch

    from posttrain.model import policy

    settings = demo_settings("dpo", "model.max_seq_length=100")
    ids = torch.full((1, 125), 7, device="cuda")
    for beyond, tokens in ((0, 100), (30, 125)):
        loaded = policy.load(settings.model, settings.lora, settings.training, False, beyond)[0]
        with torch.no_grad():
            assert loaded(input_ids=ids).logits.shape[1] == tokens
