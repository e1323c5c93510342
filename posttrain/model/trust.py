"""Check that a model folder or a checkpoint holds tensors and plain values, and no code.

Reading a pickle can run any code, and a model folder can have Python files run. So weights are read
from safetensors only, remote code is never run, and the few files of a checkpoint that torch has to
read are read with `weights_only=True`, which creates only objects of a few types.
"""

import re
from pathlib import Path
from typing import Any

from posttrain.base.errors import CheckpointError, ConfigError, first_line
from posttrain.base.files import read_object
from posttrain.settings.adapters import base_of

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check_model_folder(folder: Path, where: str) -> None:
    """Raise ConfigError, about the setting `where`, if a model or adapter folder, or the folder of
    an adapter's base model, requires code or has its weights in pickles."""
    for path in sorted(folder.glob("*config.json")):
        try:
            key = _requires_code(read_object(path))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if key:
            raise ConfigError(
                f"{where}: {path} requires Python code that comes with the model ({key}), which "
                "is refused. Use a model of an architecture that transformers has itself"
            )
    is_adapter = (folder / "adapter_config.json").is_file()
    wanted = "adapter_model*.safetensors" if is_adapter else "*.safetensors"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles and not any(folder.glob(wanted)):
        raise ConfigError(
            f"{where}: {folder} holds its weights only as pickles ({', '.join(pickles[:3])}), and "
            "a pickle can run any code when it is read. Use a version in safetensors, or convert "
            "it where nothing is at stake: load it there and save_pretrained(...)"
        )
    if is_adapter:
        base = Path(base_of(folder))
        if base.is_dir() and base.resolve() != folder:
            check_model_folder(base.resolve(), f"{where}: the base model")


def _requires_code(value: Any) -> str | None:
    """The key, at any depth, with which a configuration requires code."""
    if not isinstance(value, dict | list):
        return None
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key in ("auto_map", "custom_pipelines", "trust_remote_code") and inner:
            return str(key)
        if key_inside := _requires_code(inner):
            return key_inside
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Raise CheckpointError if a file of a checkpoint could run code when the trainer loads it.

    The trainer reads the files in the same way, but only after the model is loaded. The manifest
    does not protect against this: whoever replaces a file can write a manifest too.
    """
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(p for p in checkpoint.rglob("*") if p.suffix in PICKLES):
        reason = "no checkpoint of this project has such a file"
        if path.suffix in (".pt", ".pth"):  # optimizer, scheduler, scaler and random states
            try:
                with safe_globals():
                    torch.load(path, map_location="cpu", weights_only=True)
                continue
            except Exception as error:  # torch raises many kinds of errors here
                name = re.search(r"GLOBAL (\S+)", str(error))
                why = f"it requires {name[1]}" if name else first_line(error)
                reason = f"torch's reader for plain tensors does not take it: {why}"
        raise CheckpointError(
            f'{path}: refused, {reason}. Nothing of it was run. "--resume PATH" resumes from '
            'another checkpoint, "--resume never" starts over (the old folder is moved aside)'
        )
