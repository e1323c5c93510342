"""Unsloth's Triton kernels in plain PyTorch, same inputs and outputs.

Triton's interpreter runs the real ones, at about a second a layer;
PRETEND_GPU_KERNELS=interpreted keeps them.
"""

import os
from typing import Any

from tests.pretend_gpu.hooks import after_import, put

INTERPRETED = os.environ.get("PRETEND_GPU_KERNELS") == "interpreted"


@after_import("unsloth.kernels.rms_layernorm")
def rms_norm(module: Any) -> None:
    import torch

    def fast_rms_layernorm(
        layernorm: Any, X: Any, gemma: bool = False, save_output: bool = False, **_: Any
    ) -> Any:
        weight = layernorm.weight
        names = ("variance_epsilon", "eps")  # Qwen and Llama call it the first, others the second
        epsilon = next(getattr(layernorm, name) for name in names if hasattr(layernorm, name))
        x = X.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        scaled = normed * (weight.float() + 1) if gemma else normed.to(weight.dtype) * weight
        return scaled.to(X.dtype)

    if not INTERPRETED:
        put(module, "fast_rms_layernorm", fast_rms_layernorm)


@after_import("unsloth.kernels.rope_embedding")
def rope(module: Any) -> None:
    import torch

    def rotate(x: Any, cos: Any, sin: Any, indices: Any) -> Any:  # x is (B, heads, S, size)
        cos, sin, half = cos.squeeze(), sin.squeeze(), x.shape[-1] // 2
        batch, _, length, _ = x.shape
        if indices is None:
            c, s = cos[None, None, :length, :half], sin[None, None, :length, :half]
        else:
            at = indices.reshape(batch, length).long()
            c, s = cos[at][..., :half].unsqueeze(1), sin[at][..., :half].unsqueeze(1)
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * c - b * s, b * c + a * s), -1).to(x.dtype)

    def fast_rope_embedding(
        Q: Any, K: Any, cos: Any, sin: Any, rope_embedding_indices: Any = None
    ) -> tuple[Any, Any]:
        return (
            rotate(Q, cos, sin, rope_embedding_indices),
            rotate(K, cos, sin, rope_embedding_indices),
        )

    if not INTERPRETED:
        put(module, "decode_rope_inplace", lambda *_, **__: False)  # its callers rotate in PyTorch
        put(module, "fast_rope_embedding", fast_rope_embedding)


@after_import("unsloth.kernels.swiglu")
def swiglu(module: Any) -> None:
    import torch

    def forward(e: Any, g: Any) -> Any:
        return torch.nn.functional.silu(e.float()).to(e.dtype) * g

    def backward(DW: Any, e: Any, g: Any) -> tuple[Any, Any, Any]:
        """In place, as the kernel: Unsloth's own PyTorch version of it."""
        for into, value in zip((DW, e, g), module._DWf_DW_dfg_traced(DW, e, g), strict=True):
            into.copy_(value)
        return DW, e, g

    if not INTERPRETED:
        put(module, "swiglu_fg_kernel", forward)
        put(module, "swiglu_DWf_DW_dfg_kernel", backward)


@after_import("unsloth.kernels.cross_entropy_loss")
def cross_entropy(module: Any) -> None:
    import torch

    def fast_cross_entropy_loss(
        logits: Any,
        labels: Any,
        logit_softcapping: float = 0,
        logit_scaling: float = 0,
        n_items: Any = None,
    ) -> Any:
        x = logits.float()
        if logit_scaling:
            x = x * logit_scaling
        if logit_softcapping:
            x = logit_softcapping * torch.tanh(x / logit_softcapping)
        total = torch.nn.functional.cross_entropy(
            x.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        return total / (torch.count_nonzero(labels != -100) if n_items is None else n_items)

    if not INTERPRETED:
        put(module, "fast_cross_entropy_loss", fast_cross_entropy_loss)


@after_import("unsloth.kernels.fused_add_rms_layernorm")
def add_and_norm_apart(module: Any) -> None:
    """The fused kernel of decoding is off: its callers add and norm one after the other."""
    put(module, "fast_add_rms_layernorm_inference_ok", lambda *_, **__: False)
