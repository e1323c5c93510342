"""How a LoRA adapter is initialised, and which reference follows from that.

A new adapter has no effect (B = 0), so the reference is the policy with its adapter off. PiSSA and
OLoRA are different: they move a part of each base weight W into the adapter, so that
W = residual + scale B0 A0. With the adapter off, only the residual is left, which is not the model
that training starts from. The reference is then the policy with its initial adapter B0 A0.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from posttrain.settings import Lora

MOVED = ("pissa", "olora")
"""Values of lora.init that change the base weights. Their adapters are converted when saved."""
# policy -> its initial adapter weights, if they have an effect.
_STARTS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def peft_arguments(lora: Lora) -> dict[str, Any]:
    """The arguments of get_peft_model that select the kind of adapter."""
    named = lora.init in ("gaussian", *MOVED)
    return {
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "init_lora_weights": lora.init if named else True,
    }


def remember_start(policy: Any, lora: Lora) -> None:
    """Keep a copy of the initial weights of a new adapter, if they have an effect."""
    if lora.init in MOVED:
        weights = policy.named_parameters()
        _STARTS[policy] = {name: p.detach().clone() for name, p in weights if "lora_" in name}


def has_start(policy: Any) -> bool:
    """Whether the reference is the policy with its initial adapter, not with the adapter off."""
    return policy in _STARTS


@contextlib.contextmanager
def reference_mode(policy: Any) -> Iterator[None]:
    """Turn the policy into its reference: adapter off, or the initial adapter."""
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
    """Add adapters with the policy's own config without changing the base weights again.

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
    """Add a copy of the initial adapter named `ref`, which trl uses as the reference.

    Does nothing if the reference is the policy with its adapter off, which is trl's choice without
    such a copy. Call it before training.
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
    """Write the adapter so that it applies to the original base model.

    PiSSA and OLoRA train B A, which starts at B0 A0, on the residual weights. The learnt change is
    scale (B A - B0 A0), which peft writes as an adapter of twice the rank.
    """
    if policy.peft_config["default"].init_lora_weights not in MOVED:
        policy.save_pretrained(folder, selected_adapters=["default"])
    else:
        _save_moved(policy, folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template; the run writes its own


def _save_moved(policy: Any, folder: Path) -> None:
    """Write the change that PiSSA or OLoRA learnt, with the help of the initial adapter."""
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        with reference_mode(policy):
            policy.save_pretrained(start, selected_adapters=["default"])
        policy.save_pretrained(
            folder,
            selected_adapters=["default"],
            path_initial_model_for_weight_conversion=str(start),
        )
