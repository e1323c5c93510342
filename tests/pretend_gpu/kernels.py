"""Kernels in plain PyTorch, same inputs and outputs: Unsloth's of Triton, and xformers' attention.
4-bit weights are unpacked by bitsandbytes' CPU backend in place of its CUDA kernels.

Triton's interpreter runs Unsloth's, at about a second a layer;
PRETEND_GPU_KERNELS=interpreted keeps them.
"""

import os
from itertools import pairwise
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


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    **_: Any,
) -> Any:
    """Softmax attention over (B, M, H, K), or grouped (B, M, G, H, K); computed in float32.

    Rows that are packed into one are attended one at a time: as a single product of all their
    tokens a step took sixteen times as long.
    """
    import torch

    kind = type(attn_bias).__name__
    if kind in ("BlockDiagonalMask", "BlockDiagonalCausalMask"):
        starts = list(attn_bias.q_seqinfo.seqstart_py)
        if starts == list(attn_bias.k_seqinfo.seqstart_py):
            parts = []
            for start, end in pairwise(starts):
                mask = None
                if kind == "BlockDiagonalCausalMask":
                    mask = torch.full((end - start, end - start), float("-inf")).triu(1)
                rows = (x[:, start:end] for x in (query, key, value))
                parts.append(attention(*rows, mask, p, scale))
            return torch.cat(parts, 1)
    grouped = query.ndim == 5
    order = (0, 2, 3, 1, 4) if grouped else (0, 2, 1, 3)
    back = (0, 3, 1, 2, 4) if grouped else (0, 2, 1, 3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.permute(*order).float() for x in (query, key, value))
    scores = (q * scale) @ k.transpose(-1, -2)
    if attn_bias is not None:
        if not isinstance(attn_bias, torch.Tensor):
            shape = tuple(scores.shape)
            attn_bias = attn_bias.materialize(shape, dtype=torch.float32, device="cpu")
        scores = scores + attn_bias.float()
    return (scores.softmax(-1) @ v).to(query.dtype).permute(*back)


@after_import("xformers.ops.fmha")
def attend_in_torch(module: Any) -> None:
    put(module, "memory_efficient_attention", attention)


@after_import("unsloth.kernels.utils")
def unpack_on_the_cpu(module: Any) -> None:
    import torch

    unpack = module.bnb_functional.dequantize_4bit
    other = module.fast_dequantize

    def weight_of(packed: Any, state: Any, out: Any = None) -> Any:
        data = packed.data if isinstance(packed, torch.nn.Parameter) else packed
        if data.shape[0] == 1:  # packed along the other side
            return unpack(data.t(), state).t()
        weight = unpack(data, state)
        return weight if out is None else out.copy_(weight)

    def fast_dequantize(
        W: Any,
        quant_state: Any = None,
        out: Any = None,
        use_global_buffer: bool = False,
        dtype: Any = None,
    ) -> Any:
        if quant_state is None:
            return W
        if getattr(quant_state, "quant_type", None) != "nf4":
            return other(W, quant_state, out, use_global_buffer, dtype)
        return weight_of(W, quant_state, out)

    def fast_gemv(X: Any, W: Any, quant_state: Any, out: Any = None, *_: Any, **__: Any) -> Any:
        if quant_state is None:
            return torch.matmul(X, W, out=out)
        packed = W.t() if W.shape[0] == 1 else W
        product = X @ unpack(packed, quant_state).to(X.dtype).t()
        return product if out is None else out.copy_(product)

    put(module, "fast_dequantize", fast_dequantize)
    put(module, "fast_gemv", fast_gemv)
    put(module, "_bnb_gemm_4bit_ok", lambda *_, **__: False)
    put(module, "_USE_NF4_KERNELS", False)
    put(module, "_gemv_rows_cap", lambda *_, **__: 0)
