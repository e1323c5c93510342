"""What a model folder or a checkpoint may hold: tensors and plain values, no code.

A pickle runs whatever it says when it is read, and a model folder can ask for Python of its own. So
weights are read from safetensors alone, remote code is never run, and the few files of a checkpoint
that torch has to read are read with `weights_only=True`, which builds no object but those of a
short list.
"""

import json
import re
from pathlib import Path
from typing import Any

from posttrain.base.errors import CheckpointError, ConfigError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
READ_BY_TORCH = (".pt", ".pth")  # optimizer, scheduler, scaler and random states of a checkpoint
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "adapter_config.json",
)


def check_model_folder(folder: Path, where: str) -> None:
    """Check that a local model or adapter folder asks for no code and has its weights as tensors.

    An adapter's base model is checked too where it is a local folder. `where` is what the message
    calls the setting.

    Raises:
        ConfigError: it does not; nothing but its JSON was read.
    """
    for name in CONFIGS:
        path = folder / name
        if path.is_file() and (key := _asks_for_code(_read(path, where))):
            raise ConfigError(
                f"{where}: {path} asks to run Python code that comes with the model ({key}), which "
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
        base = _read(folder / "adapter_config.json", where).get("base_model_name_or_path")
        if isinstance(base, str) and Path(base).is_dir() and Path(base).resolve() != folder:
            check_model_folder(Path(base).resolve(), f"{where}: the base model")


def _read(path: Path, where: str) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {path} should hold an object")
    return value


def _asks_for_code(value: Any) -> str | None:
    """The key, at any depth, by which a configuration asks for code of its own."""
    if isinstance(value, list):
        return next((key for item in value if (key := _asks_for_code(item))), None)
    if not isinstance(value, dict):
        return None
    for key, inner in value.items():
        if key in ("auto_map", "custom_pipelines", "trust_remote_code") and inner:
            return str(key)
        if found := _asks_for_code(inner):
            return found
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Check that nothing in a checkpoint would run code when the trainer loads it.

    The trainer reads the same files in the same way; doing it here first gives an answer before any
    model is loaded. A manifest is no help against this: whoever swaps a file can write one.

    Raises:
        CheckpointError: naming the file and what it asked for. Nothing of it was run.
    """
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(p for p in checkpoint.rglob("*") if p.suffix in PICKLES):
        if path.suffix not in READ_BY_TORCH:
            raise CheckpointError(_refusal(path, "no checkpoint of this project has such a file"))
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader fails in many ways on what it does not know
            asked = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {asked[1]}" if asked else str(error).strip().split("\n")[0]
            raise CheckpointError(
                _refusal(path, f"torch's reader for plain tensors does not take it: {reason}")
            ) from None


def _refusal(path: Path, reason: str) -> str:
    return (
        f'{path}: refused, {reason}. Nothing of it was run. "--resume PATH" goes on from another '
        'checkpoint, "--resume never" starts over (the old folder is moved aside)'
    )
