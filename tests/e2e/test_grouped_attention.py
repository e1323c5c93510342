"""On a CPU, attention without gradients copies no key or value, and changes no bit."""

from typing import Any

import pytest

from posttrain.model import runtime

KEY_HEADS, QUERY_HEADS = 2, 6


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    runtime.start(False, 1)
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=QUERY_HEADS,
        num_key_value_heads=KEY_HEADS,
        attn_implementation="sdpa",
    )
    return AutoModelForCausalLM.from_config(config).to(getattr(torch, request.param))


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of heads of the keys in each call of attention."""
    import torch

    attention = torch.nn.functional.scaled_dot_product_attention
    heads: list[int] = []

    def watched(query: Any, key: Any, *arguments: Any, **options: Any) -> Any:
        heads.append(key.shape[1])
        return attention(query, key, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    return heads


def test_decoding_reads_groups_and_gives_the_same_bits(
    model: Any, heads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers.integrations import sdpa_attention

    ids = torch.randint(0, 97, (5, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = mask[1, :3] = 0  # padded on the left, so that there is a mask

    def scores() -> Any:
        with torch.no_grad():
            output = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=8,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                eos_token_id=None,
                pad_token_id=0,
            )
        return torch.stack(output.logits)

    grouped = scores()
    assert set(heads) == {KEY_HEADS}
    heads.clear()
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *_: False)
    assert torch.equal(scores(), grouped)
    assert set(heads) == {QUERY_HEADS}


def test_training_attends_as_transformers_does(model: Any, heads: list[int]) -> None:
    """Gradients of shared keys are summed in an order of torch's own: left as it is upstream."""
    import torch

    ids = torch.randint(0, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    model(input_ids=ids, attention_mask=mask).logits.float().sum().backward()
    assert set(heads) == {QUERY_HEADS}
