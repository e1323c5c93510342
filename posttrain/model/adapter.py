"""LoRA adapters: which reference a run has, saving, and checking one that is to be trained on.

A new adapter has no effect (B = 0), so the reference is the policy with its adapter off. A run with
`model.adapter` starts from an earlier stage's adapter; its reference has that adapter as it was.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask, tensor_shapes, write_text
from posttrain.base.paths import ROOT
from posttrain.settings import Lora
from posttrain.settings.adapters import BASE, CONFIG, WEIGHTS, base_of


def remember_start(policy: Any) -> None:
    """Make the policy as it is now its reference: keep a copy of the adapter's weights, and put it
    in their place wherever the adapter is to be off.

    trl and Unsloth turn the adapter off to score the reference, so this serves them too. trl's own
    way is a second adapter: checkpoints would hold both, and transformers restores only that one.
    """
    parameters = policy.named_parameters()
    start = {name: p.detach().clone() for name, p in parameters if "lora_" in name}

    @contextlib.contextmanager
    def start_in_place() -> Iterator[None]:
        trained = [(name, p, p.data) for name, p in policy.named_parameters() if name in start]
        layers = policy.named_modules()
        dropouts = [(m, m.training) for name, m in layers if name.endswith("lora_dropout.default")]

        def put_back() -> None:
            for _, parameter, value in trained:
                parameter.data = value
            for dropout, mode in dropouts:
                dropout.train(mode)

        try:
            for name, parameter, _ in trained:
                parameter.data = start[name].to(parameter)
            for dropout, _ in dropouts:  # a reference is not random
                dropout.eval()
            yield
        finally:
            try:
                put_back()
            finally:  # a signal, which comes once, may have ended the first call
                put_back()

    policy.disable_adapter = start_in_place


def has_start(policy: Any) -> bool:
    """Whether remember_start() made the reference, which is else the policy without adapter."""
    return "disable_adapter" in vars(policy)


@contextlib.contextmanager
def without_copy(policy: Any) -> Iterator[None]:
    """Build a trainer that keeps no copy of the adapter, which trl adds as its reference. Without
    it trl scores the reference with the adapter off, see remember_start()."""
    try:
        yield
    finally:
        if "ref" in getattr(policy, "peft_config", ()):  # a model may have no adapter
            policy.delete_adapter("ref")


def save(policy: Any, folder: Path) -> None:
    """Write the adapter, so that it names its base model wherever the project is."""
    policy.save_pretrained(folder, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # peft's template; the run writes its own
    for weights in folder.glob("*.safetensors"):
        follow_umask(weights)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if Path(config[BASE]).is_relative_to(ROOT):  # the project may be moved
        config[BASE] = str(Path(config[BASE]).relative_to(ROOT))
        write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True))


def check_weights(folder: Path, lora: Lora, base: Any) -> None:
    """Raise ConfigError unless an adapter's weights are complete, of the rank and layers that its
    config says, and of the shapes of the `base` model, which may be on the meta device."""
    path = folder / WEIGHTS
    try:
        shapes = tensor_shapes(path)
    except ConfigError as error:
        raise ConfigError(f"model.adapter: {error}") from None
    held = {n: shape for n, shape in shapes.items() if ".lora_A." in n or ".lora_B." in n}
    targets = tuple(f".{target}" for target in lora.target_modules)
    expected = {}
    for name, layer in base.named_modules():
        if f".{name}".endswith(targets):
            prefix = f"base_model.model.{name}.lora_"
            expected[f"{prefix}A.weight"] = [lora.r, getattr(layer, "in_features", None)]
            expected[f"{prefix}B.weight"] = [getattr(layer, "out_features", None), lora.r]
    if odd := sorted(expected.keys() ^ held.keys()):
        verb, whose = ("lacks", "") if odd[0] in expected else ("holds", "not ")
        raise ConfigError(
            f"model.adapter: {path} {verb} {odd[0]}, which is {whose}of a layer of the base model "
            f"that {CONFIG} names; weights, config and base model do not belong together"
        )
    if wrong := next((name for name in held if held[name] != expected[name]), None):
        raise ConfigError(
            f"model.adapter: {path} does not fit: {wrong} is {held[wrong]}, and {CONFIG} "
            f"and its base model require {expected[wrong]}; it was trained on another model"
        )


@contextlib.contextmanager
def with_base_path(folder: Path, base: str | None = None) -> Iterator[Path]:
    """An adapter folder as links, with the path of its base model on this machine, or another
    `base`. Other folders stay as they are."""
    if not (folder / CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        for file in folder.iterdir():
            if file.name != CONFIG:
                (Path(temporary) / file.name).symlink_to(file.absolute())
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config[BASE] = base or base_of(folder)
        write_text(Path(temporary) / CONFIG, json.dumps(config))
        yield Path(temporary)
