"""Sampling from merged weights: one product per layer where LoRA needs three.

For each adapted linear layer W + scale B A (with DoRA, its rows scaled to their learnt lengths) is
computed in float32 and rounded once to the type that the base model computes in. A plain linear
layer with that weight replaces the LoRA layer while replies are sampled. The trained weights do not
change, so nothing drifts. 4-bit weights are unpacked once per generation.

The formulas: LoRA, https://arxiv.org/abs/2106.09685, equation 3; rsLoRA changes its scale,
https://arxiv.org/abs/2312.03732; DoRA, https://arxiv.org/abs/2402.09353, equation 5.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

from posttrain.model.device import free_bytes

SHARE = 0.25  # of the free memory, which merged weights may take where the choice is `auto`


class MergedWeights:
    """The merged weights of one policy, and the layers that they replace."""

    def __init__(self, policy: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self._layers = [
            (parent, name, layer)
            for parent in policy.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, LoraLayer)
        ]
        self._linears: list[Any] = []
        obstacles = (
            f"{name} {why}" for _, name, layer in self._layers if (why := _obstacle(layer))
        )
        self.obstacle = next(obstacles, None)
        """The first layer that cannot be merged, and why; None if all can."""

    @property
    def bytes(self) -> int:
        """Memory of the merged weights; 0 if the adapter changes no layer."""
        return sum(
            layer.in_features * layer.out_features * compute_type(layer.get_base_layer()).itemsize
            for *_, layer in self._layers
        )

    @contextlib.contextmanager
    def in_place(self, keep: bool) -> Iterator[None]:
        """Merge, and replace the LoRA layers by merged ones inside of the block. `keep` keeps their
        memory, at the same addresses, for the next time."""
        import torch

        if any(layer.disable_adapters for *_, layer in self._layers):  # the reference is in use
            yield
            return
        if not self._linears:
            self._linears = [_empty_linear(layer.get_base_layer()) for *_, layer in self._layers]
        device = self._linears[0].weight.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            for (*_, layer), linear in zip(self._layers, self._linears, strict=True):
                linear.weight.copy_(merged_weight(layer))
        try:
            for (parent, name, _), linear in zip(self._layers, self._linears, strict=True):
                setattr(parent, name, linear)
            yield
        finally:
            try:
                self._put_back()
            finally:  # a signal, which comes once, may have ended the first call
                self._put_back()
            if not keep:
                self._linears = []

    def _put_back(self) -> None:
        for parent, name, layer in self._layers:
            layer.train(parent.training)  # the mode may have changed meanwhile
            setattr(parent, name, layer)


def merged_weight(layer: Any) -> Any:
    """The merged weight of one of peft's LoRA layers, in float32, of shape (out, in)."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    (name,) = layer.active_adapters
    weight = dequantize_module_weight(layer.get_base_layer()).float()
    down, up = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
    merged = torch.addmm(weight, up, down, alpha=layer.scaling[name])
    if name in layer.lora_magnitude_vector:
        lengths = layer.lora_magnitude_vector[name].weight.float()
        merged *= (lengths / torch.linalg.norm(merged, dim=1))[:, None]
    return merged


def _obstacle(layer: Any) -> str:
    import torch
    from peft.tuners.lora.variants import DoraLinearVariant

    if not isinstance(layer.get_base_layer(), torch.nn.Linear):
        return f"is not a linear layer ({type(layer.get_base_layer()).__name__})"
    (name,) = layer.active_adapters
    variant = layer.lora_variant.get(name)
    if layer.lora_bias[name] or not isinstance(variant, DoraLinearVariant | None):
        return "has an adapter of another kind than LoRA, rsLoRA and DoRA"
    return ""


def compute_type(linear: Any) -> Any:
    """The torch dtype that a base layer computes in; for 4-bit weights, the one they unpack to."""
    state = getattr(linear.weight, "quant_state", None)
    return linear.weight.dtype if state is None else state.dtype


def _empty_linear(base: Any) -> Any:
    """A linear layer like a base layer, with its bias and a weight yet to be filled in."""
    import torch

    kind, device = compute_type(base), base.weight.device
    linear = torch.nn.utils.skip_init(
        torch.nn.Linear, base.in_features, base.out_features, bias=False, dtype=kind, device=device
    )
    linear.weight.requires_grad_(False)
    linear.bias = base.bias
    return linear


# policy -> its merged weights, and whether their memory is kept between generations.
_CHOSEN: WeakKeyDictionary[Any, tuple[MergedWeights, bool]] = WeakKeyDictionary()


def choose_weights(policy: Any, choice: Literal["auto", "merged", "adapter"], keep: bool) -> None:
    """Decide whether the policy's replies are sampled from merged weights, and print it. `keep`:
    their memory stays allocated between generations, as for GRPO's rollouts."""
    if choice == "adapter":
        return
    merged = MergedWeights(policy)
    if merged.obstacle:
        print(f"note: sampling through the adapter, which cannot be merged: {merged.obstacle}")
        return
    needed, free = merged.bytes, free_bytes(policy.device)
    if not needed:  # the adapter is not LoRA
        return
    size = f"{needed / 2**20:,.0f} MB"
    if choice == "auto" and needed > SHARE * free:
        print(
            f"note: sampling through the adapter: merged weights would take {size} of "
            f"{free / 2**20:,.0f} MB of free memory"
        )
        return
    if keep:
        print(f"Rollouts are sampled from merged weights ({size})")
    _CHOSEN[policy] = merged, keep


def sampling_weights(policy: Any) -> contextlib.AbstractContextManager[None]:
    """Sample from the policy's merged weights inside of the block, if that was chosen."""
    if policy not in _CHOSEN:
        return contextlib.nullcontext()
    merged, keep = _CHOSEN[policy]
    return merged.in_place(keep)
