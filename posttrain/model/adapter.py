"""The start of a LoRA adapter, and the reference that follows from it.

A new adapter of zero effect (B = 0) leaves the base model as the reference: the adapter off. Three
starts are not of zero effect. PiSSA and OLoRA move part of each base weight W into the adapter, so
that W = residual + scale B0 A0; LoftQ fits scale B0 A0 to what 4-bit rounding lost of W. With the
adapter off, none of them is the model that training starts from. The reference is then the policy
with its adapter as it was at the start.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from posttrain.settings import Lora

MOVED = ("pissa", "olora")
"""Starts that change the base weights; their adapters are converted when they are saved."""
# The adapter's weights at the start, of policies whose start is not of zero effect.
_STARTS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def peft_arguments(lora: Lora) -> dict[str, Any]:
    """The arguments of get_peft_model that say which kind of adapter this is."""
    named = lora.init in ("gaussian", *MOVED)
    return {
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "init_lora_weights": lora.init if named else True,
    }


def settle_start(policy: Any, lora: Lora, original: str, revision: str | None) -> None:
    """Finish a new adapter, and remember its start where that is not of zero effect.

    `original` is the model's folder or hub name, whose unquantised weights LoftQ reads.
    """
    if lora.init == "loftq":
        _fit_rounding_error(policy, original, revision)
    if lora.init in (*MOVED, "loftq"):
        weights = policy.named_parameters()
        _STARTS[policy] = {name: p.detach().clone() for name, p in weights if "lora_" in name}


def _fit_rounding_error(policy: Any, original: str, revision: str | None) -> None:
    """One step of LoftQ (https://arxiv.org/abs/2310.08659, algorithm 1) on quantised weights.

    scale B A becomes the best rank-r approximation of W - Q(W), by SVD. peft's own function for it
    needs CUDA and leaves the scale alpha / r out.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import Linear4bit
    from transformers import AutoModelForCausalLM

    exact = AutoModelForCausalLM.from_pretrained(original, revision=revision)
    for name, module in policy.get_base_model().named_modules():
        if not isinstance(module, Linear4bit):
            continue
        quantised = module.base_layer.weight
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        error = exact.get_submodule(name).weight.detach().to(a) - dequantize_4bit(
            quantised.data, quantised.quant_state
        ).to(a)
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        roots = (values[: len(a)] / module.scaling["default"]).sqrt()
        a.data = (roots[:, None] * right[: len(a)]).contiguous()
        b.data = (left[:, : len(a)] * roots).contiguous()


def has_start(policy: Any) -> bool:
    """Whether the reference is the adapter at its start, not the adapter off."""
    return policy in _STARTS


@contextlib.contextmanager
def reference_mode(policy: Any) -> Iterator[None]:
    """Make the policy its own reference: the adapter off, or as it was at the start."""
    start = _STARTS.get(policy)
    if start is None:
        with policy.disable_adapter():
            yield
        return
    parameters = [(p, start[name]) for name, p in policy.named_parameters() if name in start]
    trained = [parameter.data for parameter, _ in parameters]
    for parameter, value in parameters:
        parameter.data = value.to(parameter)
    try:
        yield
    finally:
        for (parameter, _), value in zip(parameters, trained, strict=True):
            parameter.data = value


@contextlib.contextmanager
def without_new_start(policy: Any) -> Iterator[None]:
    """Adapters added meanwhile under the policy's own config do not change the base weights again.

    trl adds a copy of the adapter in this way while it builds a trainer.
    """
    config = policy.peft_config["default"]
    init, config.init_lora_weights = config.init_lora_weights, True
    try:
        yield
    finally:
        config.init_lora_weights = init


@contextlib.contextmanager
def start_for_trl(policy: Any) -> Iterator[None]:
    """Give the policy, before training, the copy named `ref` that trl takes for the reference.

    Only where the adapter off is not the reference, which is what trl uses without the copy.
    """
    if not has_start(policy):
        yield
        return
    with without_new_start(policy):
        policy.add_adapter("ref", policy.peft_config["default"])
    for name, parameter in list(policy.named_parameters()):
        if name in _STARTS[policy]:
            copy = policy.get_parameter(name.replace(".default.", ".ref."))
            copy.data = parameter.detach().clone()
    policy.set_adapter("default")
    try:
        yield
    finally:
        policy.delete_adapter("ref")


def save(policy: Any, folder: Path) -> None:
    """Write the adapter so that it applies to the untouched base model.

    PiSSA and OLoRA train B A from B0 A0 on the residual weights; what they learnt is
    scale (B A - B0 A0), which peft writes as an adapter of twice the rank.
    """
    if policy.peft_config["default"].init_lora_weights not in MOVED:
        policy.save_pretrained(folder, selected_adapters=["default"])
    else:
        _save_moved(policy, folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template; the run has its own card


def _save_moved(policy: Any, folder: Path) -> None:
    """What PiSSA and OLoRA learnt, from the start that they moved out of the base weights."""
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        with reference_mode(policy):
            policy.save_pretrained(start, selected_adapters=["default"])
        policy.save_pretrained(
            folder,
            selected_adapters=["default"],
            path_initial_model_for_weight_conversion=str(start),
        )
