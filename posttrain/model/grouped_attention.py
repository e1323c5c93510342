"""Grouped-query attention that reads keys and values where they are, where there is no GPU.

Beside a mask, transformers copies every key and value for each query head that shares it, because
CUDA's kernels take no groups together with a mask. torch's kernel for the CPU does, and gives the
same numbers to the last bit. With 14 query heads on 2 of keys and values (Qwen2.5-0.5B), 24 rows
and 300 tokens, the copies take nine tenths of a decoding step's attention.
"""

import functools
import importlib
from typing import Any


@functools.cache  # once
def share_keys_and_values() -> None:
    """Let attention without gradients, as in decoding and scoring, run on uncopied groups."""
    import torch

    sdpa_attention: Any = importlib.import_module("transformers.integrations.sdpa_attention")
    usual = sdpa_attention.use_gqa_in_sdpa

    def use_groups(attention_mask: Any, key: Any, value: Any) -> bool:
        if key.device.type == "cpu" and not torch.is_grad_enabled():
            return bool(key.shape[-1] == value.shape[-1])
        return bool(usual(attention_mask, key, value))

    sdpa_attention.use_gqa_in_sdpa = use_groups
