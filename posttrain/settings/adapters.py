"""Adapter folders as they lie on the disk, and the settings of a run that starts from one.

Read without torch, so that what contradicts an adapter is refused at once.
"""

import re
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, given
from posttrain.base.files import read_object
from posttrain.base.paths import ROOT, here_or_project
from posttrain.settings.strict_yaml import read_yaml

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
QUANTISED_NAME = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
VOCABULARY = ("embed_tokens", "lm_head", "wte")  # matrices of that size


def find_adapter(name: str) -> Path:
    """The adapter folder that `model.adapter` names, which may be that of its run; raises
    ConfigError if there is none."""
    folder = here_or_project(name)
    for adapter in (folder / "adapter", folder):
        if (adapter / CONFIG).is_file():
            return adapter.resolve()
    if (folder / "config.yaml").is_file():
        raise ConfigError(
            f"model.adapter: the run {name} is not finished, so it has no adapter/ yet; give "
            "its training command again, or name one of its checkpoints"
        )
    raise ConfigError(
        f"model.adapter: there is no run folder or adapter folder '{name}' (one with {CONFIG})"
    )


def read_adapter(folder: Path) -> dict[str, Any]:
    """The contents of an adapter's config; raises ConfigError if it is not a JSON object."""
    return read_object(folder / CONFIG)


def base_of(folder: Path) -> str:
    """The base model of an adapter folder: an absolute path, or the name of a hub model. A relative
    path is one of the project. For an absolute one that is missing, because the project was moved,
    the base that the config of the adapter's run names is tried. Raises ConfigError if there is no
    such folder, or none is named."""
    recorded = read_adapter(folder).get(BASE)
    if not isinstance(recorded, str):
        raise ConfigError(f"{folder / CONFIG} names no base model ({BASE})")
    names = [recorded]
    for parent in list(folder.absolute().parents)[:3]:
        if (parent / "config.yaml").is_file():
            model = read_yaml(parent / "config.yaml").get("model")
            names += [str(model["name"])] if isinstance(model, dict) and model.get("name") else []
    for name in names:
        if (ROOT / name).is_dir():
            return str(ROOT / name)
    if not Path(recorded).is_absolute():
        return str(recorded)
    raise ConfigError(f"{folder}: its base model {recorded} does not exist")


def obstacle(config: dict[str, Any], tied: bool = False) -> str | None:
    """Why an adapter is more than LoRA on linear layers, so that it cannot be merged exactly or
    trained on; None where it is not. `tied`: input and output embeddings are one matrix."""
    targets = config.get("target_modules") or []
    targets = [targets] if isinstance(targets, str) else targets
    ends = [target.split(".")[-1] for target in targets]
    matrix = next((name for name in VOCABULARY if name in ends), None)
    init = config.get("init_lora_weights")
    reasons = [
        (config.get("peft_type") != "LORA", f"is a {config.get('peft_type')} adapter, not LoRA"),
        (config.get("modules_to_save"), "trains complete modules (modules_to_save)"),
        (config.get("trainable_token_indices"), "trains token embeddings"),
        (config.get("bias", "none") != "none", "trains biases"),
        (config.get("lora_bias"), "adds biases (lora_bias)"),
        (config.get("target_parameters"), "targets bare parameters (target_parameters)"),
        (
            str(init).startswith(("pissa", "olora")),
            f"holds a part of the base weights (init_lora_weights = {init})",
        ),
        (matrix, f"changes {matrix}{' (tied: one matrix does both jobs)' if tied else ''}"),
    ]
    return next((reason for wrong, reason in reasons if wrong), None)


def _obstacle_to_training(config: dict[str, Any]) -> str | None:
    """Why an adapter has no counterpart in the section `lora`; None where it has."""
    for key in ("rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules"):
        if config.get(key):
            return f"differs from layer to layer ({key})"
    if not isinstance(config.get("target_modules"), list):
        return "names its layers by a pattern (target_modules)"
    return None


def with_adapter(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config with those of `model.adapter` filled in: base model and LoRA. Raises
    ConfigError if the adapter cannot be trained on, or a value of the config contradicts it."""
    model, lora = values.get("model") or {}, values.get("lora") or {}
    if not (isinstance(model, dict) and isinstance(lora, dict)):
        return values  # reported by the validation that follows
    name = model.get("adapter")
    if not isinstance(name, str):
        return values
    folder = find_adapter(name)
    try:
        config, base = read_adapter(folder), base_of(folder)
    except ConfigError as error:
        raise ConfigError(f"model.adapter: {error}") from None
    if reason := obstacle(config) or _obstacle_to_training(config):
        raise ConfigError(f"model.adapter: {folder} {reason}; a run can start from plain LoRA only")
    if "name" in model and not _same_model(str(model["name"]), base):
        raise ConfigError(
            f"model.name is {model['name']}, and the adapter {name} was trained on {base}; leave "
            "model.name out, or name another adapter"
        )
    of_adapter = {
        "r": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "dropout": float(config.get("lora_dropout") or 0.0),
        "target_modules": sorted(config["target_modules"]),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }
    for key, value in of_adapter.items():
        own = lora.get(key, value)
        own = sorted(map(str, own)) if isinstance(own, list) else own
        if own != value:
            raise ConfigError(
                f"lora.{key} is {given(lora[key])}, and the adapter {name} has {given(value)}; a "
                "run that starts from an adapter trains that one, so leave the setting out"
            )
    return {**values, "model": {"name": base, **model}, "lora": {**of_adapter, **lora}}


def _same_model(first: str, second: str) -> bool:
    """Whether two names are of one model: a folder, from here or from the project, or a hub name,
    of which Unsloth loads a 4-bit copy."""
    folders = [here_or_project(name).resolve() for name in (first, second)]
    if any(folder.is_dir() for folder in folders):
        return folders[0] == folders[1]
    names = [QUANTISED_NAME.sub("", n.split("/")[-1]).lower() for n in (first, second)]
    return names[0] == names[1]
