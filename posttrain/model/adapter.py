"""How a LoRA adapter is initialised, and which reference follows from that.

A new adapter has no effect (B = 0), so the reference is the policy with its adapter off. PiSSA and
OLoRA are different: they move a part of each base weight W into the adapter, so that
W = residual + scale B0 A0. With the adapter off, only the residual is left, which is not the model
that training starts from. The reference is then the policy with its initial adapter B0 A0.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask, write_text
from posttrain.base.paths import ROOT
from posttrain.settings import Lora
from posttrain.settings.strict_yaml import read_yaml

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"
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
    for weights in folder.glob("*.safetensors"):
        follow_umask(weights)
    _name_base_within_the_project(folder / CONFIG)


def _name_base_within_the_project(path: Path) -> None:
    """Write down a base model of this project by its path in the project, which may be moved."""
    config = json.loads(path.read_text(encoding="utf-8"))
    base = Path(config[BASE])
    if base.is_absolute() and base.is_relative_to(ROOT):
        config[BASE] = str(base.relative_to(ROOT))
        write_text(path, json.dumps(config, indent=2, sort_keys=True))


def base_of(folder: Path) -> str:
    """The base model of an adapter folder: an absolute path, or the name of a hub model.

    A path of this project is looked for in the project. One that is gone, because the project was
    moved, is looked for as the config of the adapter's run names it.

    Raises:
        ConfigError: there is no such folder, or none is named.
    """
    recorded = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get(BASE)
    if not isinstance(recorded, str):
        raise ConfigError(f"{folder / CONFIG} names no base model ({BASE})")
    names = [recorded]
    for parent in list(folder.absolute().parents)[:3]:
        if (parent / "config.yaml").is_file():
            model = read_yaml(parent / "config.yaml").get("model") or {}
            names += [model["name"]] if "name" in model else []
    for name in names:
        if (ROOT / name).is_dir():
            return str(ROOT / name)
    if not Path(recorded).is_absolute():
        return str(recorded)
    raise ConfigError(f"{folder}: its base model {recorded} is not there any more")


@contextlib.contextmanager
def with_base_found(folder: Path, base: str | None = None) -> Iterator[Path]:
    """An adapter folder as links, with the path of its base model as it is on this machine, or that
    of another `base`."""
    with tempfile.TemporaryDirectory() as temporary:
        for file in folder.iterdir():
            if file.name != CONFIG:
                (Path(temporary) / file.name).symlink_to(file.absolute())
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config[BASE] = base or base_of(folder)
        write_text(Path(temporary) / CONFIG, json.dumps(config))
        yield Path(temporary)


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
