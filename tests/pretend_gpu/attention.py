"""xformers' attention in plain PyTorch."""

from itertools import pairwise
from typing import Any

from tests.pretend_gpu.hooks import after_import, put


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
