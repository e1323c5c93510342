"""Shared prompts are read once, and pairs without their padding: same scores and gradients."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.model.fewer_tokens import SharedPrompts, WithoutPadding, can_share
from tests.e2e import trainers
from tests.helpers import DEMO_MODEL

PROMPT, COMPLETION, ROWS = 120, 40, 8


@pytest.fixture(scope="module")
def model() -> Any:
    """The demo model in float32 with LoRA weights that change it, and trl's output layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    add_fused_lm_head(base, 1.0, outputs=("log_probs", "entropy"))
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "down_proj"]
    lora: Any = LoraConfig(r=8, target_modules=targets, init_lora_weights=False)
    return get_peft_model(base, lora).train()


def batch(model: Any, prompts: int) -> dict[str, Any]:
    """Rows of so many different prompts in any order, the second shorter, completions of any
    length."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> Any:
        return torch.randint(5, model.config.vocab_size, size, generator=generator)

    rows = torch.randperm(ROWS, generator=generator)
    ids = torch.cat([random(prompts, PROMPT)[rows % prompts], random(ROWS, COMPLETION)], 1)
    mask = torch.ones_like(ids)
    mask[rows % prompts == 1, :17] = 0
    for row in range(1, ROWS):
        mask[row, PROMPT + COMPLETION - 3 * row :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :PROMPT] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}


def scored(model: Any, scorer: Any, given: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """Log-probabilities and entropies, (rows, completion), and the gradients of a loss."""
    model.zero_grad()
    output = scorer(**given)
    log_probs, entropy = (each[:, -COMPLETION:] for each in (output.log_probs, output.entropy))
    (log_probs.sum(1) * log_probs.new_tensor(range(ROWS))).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    return log_probs.detach(), entropy.detach(), gradients


def test_scores_and_gradients_are_the_same(model: Any) -> None:
    given, tokens = batch(model, 2), []
    assert can_share(model)
    layer = model.get_base_model().model.layers[0].mlp
    hook = layer.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[:2]))
    expected = scored(model, model, given)
    shared = scored(model, SharedPrompts(model, COMPLETION), given)
    hook.remove()
    # Two prompts but for their last tokens, which are read with the completions.
    assert tokens == [(8, 160), (2, 119), (8, 41)]
    for mine, other in zip(shared[:2], expected[:2], strict=True):
        assert (mine - other).abs().max() < 1e-5
    for mine, other in zip(shared[2], expected[2], strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_several_threads_add_gradients_in_one_order(model: Any) -> None:
    """Or no run would be resumed bit for bit."""
    import torch

    given, threads = batch(model, 2), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (scored(model, SharedPrompts(model, COMPLETION), given) for _ in range(6))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(mine, its) for mine, its in zip(first[2], other[2], strict=True))


def test_rows_without_much_to_share_are_read_as_they_are(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batch(model, 5)
    first = scored(model, model, given)
    assert (scored(model, SharedPrompts(model, COMPLETION), given)[0] == first[0]).all()
    monkeypatch.setattr("posttrain.model.fewer_tokens.LEAST_TOKENS", PROMPT)
    given = batch(model, 2)
    first = scored(model, model, given)
    assert (scored(model, SharedPrompts(model, COMPLETION), given)[0] == first[0]).all()


def test_where_copies_of_a_prompt_are_not_alike_nothing_is_shared(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.peft_config["default"], "lora_dropout", 0.1)
    assert not can_share(model)
    monkeypatch.undo()
    monkeypatch.setattr(model.config, "layer_types", ["full_attention", "sliding_attention"])
    assert not can_share(model)


@pytest.mark.parametrize(("rejected", "passes"), [(50, [(4, 160), (4, 50)]), (90, [(8, 160)])])
def test_pairs_without_their_padding(
    model: Any, rejected: int, passes: list[tuple[int, int]]
) -> None:
    """Where there is enough of it; a chosen row is as wide as the batch."""
    given, tokens = batch(model, 5), []
    mask = given["attention_mask"]
    mask[:] = 1
    mask[1, 30:] = 0
    mask[ROWS // 2 :, rejected:] = 0
    given["labels"] = given["input_ids"].masked_fill(mask == 0, -100)
    given["labels"][:, :20] = -100
    layer = model.get_base_model().model.layers[0].mlp

    def loss(scorer: Any) -> list[Any]:
        model.zero_grad()
        output = scorer(**given)
        assert output.log_probs.shape == output.entropy.shape == (ROWS, PROMPT + COMPLETION - 1)
        output.log_probs.sum(1).diff().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        return [output.log_probs.detach(), output.entropy.detach(), *gradients]

    expected = loss(model)
    hook = layer.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[:2]))
    without = loss(WithoutPadding(model))
    hook.remove()
    assert tokens == passes
    for mine, other in zip(without, expected, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(("method", "kind"), [("grpo", SharedPrompts), ("dpo", WithoutPadding)])
def test_a_run_trains_over_fewer_tokens(
    method: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, as without it."""
    used, call = [], kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *a, **o: (used.append(0), call(*a, **o))[1])
    given = ["training.max_steps=2", "training.per_device_train_batch_size=16"]
    given += ["training.max_completion_length=48"] if method == "grpo" else []
    losses = []
    for least in (8, 10_000):
        monkeypatch.setattr("posttrain.model.fewer_tokens.LEAST_TOKENS", least)
        built = trainers.build(method, tmp_path / str(least), *given)
        built.watch()
        built.trainer.train()
        losses.append([row["loss"] for row in trainers.logged(built.trainer)])
    assert used and len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], abs=1e-5)
