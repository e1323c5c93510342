"""CUDA-graph decoding for model families that Unsloth has not tested it with.

Unsloth's `_decode_graphs` replays a captured decoding step, where an eager step launches hundreds
of small kernels. It should give bit-identical results, and some families run through the code of
those that it was tested with: Qwen2 through Llama's, plus biases of q, k and v. So a family is
allowed only after both ways of decoding have given the same bits for the same prompts, on this
machine and with this model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

ROWS = (1, 6, 64)  # one row, a few and many go through different matrix products
PROMPT, TOKENS = 24, 12
NOISE = 0.02  # factor B of a new adapter is zero, which would hide a mistake in the adapter


def admit_decode_graphs(policy: Any, graphs: Any) -> str | None:
    """Let Unsloth decode this policy's rollouts with CUDA graphs; returns why not, or None.

    `graphs` is the module unsloth.models._decode_graphs. The policy must be in inference mode. Its
    weights, the RNG state and Unsloth's own switch are restored.
    """
    if policy.device.type != "cuda":
        return "it needs an NVIDIA GPU"
    family = policy.config.model_type
    if family in graphs._SUPPORTED_MODEL_TYPES:
        return None
    graphs._SUPPORTED_MODEL_TYPES.add(family)
    # Allocate buffers for the whole length at once. Growing them later would capture the step
    # again, at a length that the short comparison here does not test.
    graphs.PREALLOC = True
    with _adapter_noise(policy):
        reasons = (_difference(policy, graphs, rows) for rows in ROWS)
        why_not = next(filter(None, reasons), None)
    if why_not:
        graphs._SUPPORTED_MODEL_TYPES.discard(family)
    return why_not


def _difference(policy: Any, graphs: Any, rows: int) -> str | None:
    """How decoding with graphs differs from eager decoding of `rows` rows; None if it does not."""
    import torch

    prompts = _prompts(policy, rows)
    try:
        graphs.ENABLED = False
        tokens, logits = _decode(policy, prompts)
        graphs.ENABLED = True
        before = _replays(policy, graphs)
        graph_tokens, graph_logits = _decode(policy, prompts)
        replays = _replays(policy, graphs) - before
    finally:
        graphs.ENABLED = None
        graphs.release_for_training(policy)
    if replays < TOKENS // 2:
        reasons = [state.disabled for state in graphs._states(policy) if state.disabled]
        return f"Unsloth did not use them: {', '.join(reasons) or 'no reason given'}"
    if not torch.equal(tokens, graph_tokens):
        return f"with {rows} rows they give other tokens than eager decoding"
    pairs = list(zip(logits, graph_logits, strict=True))
    if not all(torch.equal(eager, replayed) for eager, replayed in pairs):
        apart = max(float((eager - replayed).abs().max()) for eager, replayed in pairs)
        return f"with {rows} rows their logits are up to {apart:.3g} off those of eager decoding"
    return None


def _prompts(policy: Any, rows: int) -> tuple[Any, Any]:
    """Random tokens and their mask, (rows, PROMPT); most rows are padded on the left."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (rows, PROMPT)
    ids = torch.randint(0, min(1000, policy.config.vocab_size), shape, generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 3 * row % PROMPT] = 0
    return ids.to(policy.device), mask.to(policy.device)


def _decode(policy: Any, prompts: tuple[Any, Any]) -> tuple[Any, Sequence[Any]]:
    """TOKENS greedy tokens, (rows, TOKENS), and the logits of each, (rows, vocabulary)."""
    import torch
    from transformers import GenerationConfig

    ids, mask = prompts
    end = policy.generation_config.eos_token_id
    with torch.no_grad():
        output = policy.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=policy.generation_config.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            ),
        )
    return output.sequences[:, ids.shape[1] :].clone(), output.logits


def _replays(policy: Any, graphs: Any) -> int:
    """How many captured steps were replayed so far."""
    return sum(state.replays for state in graphs._states(policy))


@contextmanager
def _adapter_noise(policy: Any) -> Iterator[None]:
    """Give the adapter an effect during the comparison, by noise in its factor B."""
    import torch

    factors = [weight for name, weight in policy.named_parameters() if "lora_B" in name]
    kept = [weight.detach().clone() for weight in factors]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in factors:
            noise = NOISE * torch.randn(weight.shape, generator=generator)
            weight.copy_(noise.to(weight.device, weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(factors, kept, strict=True):
                weight.copy_(value)
