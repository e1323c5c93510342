"""Rollouts from merged weights through Unsloth's own decoding: same tokens, layers put back."""

import sys
from typing import Any

import pytest

from posttrain.model import merged, rollouts
from tests.e2e.test_rollouts import generation, load, lora_layers, padded, prompts_of

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load()


@pytest.fixture(scope="module")
def batch(loaded: tuple[Any, Any]) -> dict[str, Any]:
    model, tokenizer = loaded
    arguments = padded(prompts_of(tokenizer, 4, 2), tokenizer.pad_token_id)
    return {name: part.to(model.device) for name, part in arguments.items()}


def test_tokens_are_the_adapters_through_unsloths_decoding(
    loaded: tuple[Any, Any], batch: dict[str, Any]
) -> None:
    import torch

    model, tokenizer = loaded
    assert "unsloth.models.llama" in sys.modules and model.device.type == "cuda"
    model.eval()
    for options in ({}, {"do_sample": True, "top_k": 0}):
        config = generation(tokenizer, max_new_tokens=12, **options)
        torch.manual_seed(3)
        expected = model.generate(**batch, generation_config=config)
        torch.manual_seed(3)
        with rollouts.cheaper_rollouts(model, 1.0, plain=True) as noted:
            assert not lora_layers(model), "merged layers stand in their place"
            result = model.generate(**batch, generation_config=config)
        assert torch.equal(result.cpu(), expected.cpu())
        assert len(noted) == len(expected) and all(value <= 0 for row in noted for value in row)


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_layers_are_put_back_when_decoding_is_cut_off(
    loaded: tuple[Any, Any], batch: dict[str, Any], error: type[BaseException] | None
) -> None:
    import torch

    model, tokenizer = loaded
    kind = error or torch.OutOfMemoryError
    layers = lora_layers(model)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    calls = 0

    class CutOff(rollouts.SampledLogProbs):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise kind("in the fifth decoding step")
            return super().__call__(input_ids, scores)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(kind):
        patch.setattr(rollouts, "SampledLogProbs", CutOff)
        with rollouts.cheaper_rollouts(model, 1.0, plain=True):
            model.generate(**batch, generation_config=generation(tokenizer))
    assert calls == 5
    again = lora_layers(model)
    assert all(again[name] is layer for name, layer in layers.items()) and len(again) == len(layers)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert torch.isfinite(logits_of(model)).all()


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]], device=model.device)).logits


def test_from_four_bits_the_merged_model_is_the_adapted_one() -> None:
    import torch

    model, _ = load("model.load_in_4bit=true", "model.dtype=bfloat16")
    model.eval()
    adapted = logits_of(model).float()
    with model.disable_adapter():
        base = logits_of(model).float()
    with merged.sampling_weights(model):
        assert not lora_layers(model)
        result = logits_of(model).float()
    assert torch.equal(logits_of(model).float(), adapted)
    assert (result - adapted).abs().max() < 0.15 * (adapted - base).abs().max()
