"""LoRA layers with one operation less for each element of their output, where there is no GPU.

peft computes W x, then (B A x) scale, then their sum: three passes over the output, and one more
over its gradient. Here the scale and the sum are part of the product with B, as BLAS has it
(C = alpha A B + C). On a GPU Unsloth's kernels do the same.
"""

import types
from typing import Any

from posttrain.model.merged import compute_type


def fuse(policy: Any) -> None:
    """Let the plain LoRA layers of a float32 policy add their update in one product.

    Layers of other kinds (DoRA, a LoRA bias, other types than float32) stay as they are.
    The sum is rounded in another order than peft's, which is all that differs.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    for layer in policy.modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        plain = not layer.lora_variant and not any(layer.lora_bias.values())
        if plain and isinstance(base, torch.nn.Linear) and compute_type(base) == torch.float32:
            layer.forward = types.MethodType(_forward, layer)


def _forward(layer: Any, x: Any, *arguments: Any, **options: Any) -> Any:
    """What peft's forward computes of x, of shape (..., in): W x + scale B A x, (..., out)."""
    import torch

    names = layer.active_adapters
    # trl trains the adapter of 4-bit weights in bfloat16, to which peft converts x.
    kinds = {x.dtype, *(layer.lora_A[name].weight.dtype for name in names)}
    floats = kinds == {torch.float32} and not torch.is_autocast_enabled("cpu")
    if layer.disable_adapters or layer.merged or len(names) != 1 or not floats:
        return type(layer).forward(layer, x, *arguments, **options)
    (name,) = names
    base = layer.base_layer(x, *arguments, **options)
    down = layer.lora_A[name](layer.lora_dropout[name](x))
    flat = base.reshape(-1, base.shape[-1]), down.reshape(-1, down.shape[-1])
    update = layer.lora_B[name].weight.t()
    return torch.addmm(*flat, update, alpha=layer.scaling[name]).view(base.shape)
