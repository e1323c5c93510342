"""Find what to export: an adapter, its base model in 16 bits, and the run that trained it."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, first_line
from posttrain.base.paths import ROOT
from posttrain.model.pretrained import local_or_hub
from posttrain.run.checkpoint import CheckpointStore
from posttrain.settings.adapters import QUANTISED_NAME
from posttrain.settings.strict_yaml import read_yaml

WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Trained:
    """A trained adapter and the folder for its exports."""

    adapter: Path
    output: Path
    """The run folder, or for an adapter without a run a separate folder."""
    name: str
    """The first part of the names of exported files."""
    run: dict[str, Any]
    """The run's settings; empty without a run."""


def find(path: Path, output: Path | None) -> Trained:
    """The adapter in a run folder, or in an adapter folder.

    Raises:
        ConfigError: the path is neither of them, or the run is not finished.
    """
    path = path.absolute()
    adapter = path / "adapter" if (path / "adapter" / "adapter_config.json").is_file() else path
    if not (adapter / "adapter_config.json").is_file():
        if (path / "config.yaml").is_file() and (path / "environment.json").is_file():
            raise ConfigError(_unfinished(path))
        raise ConfigError(
            f"{path} is neither a run folder with an adapter nor an adapter folder: there is no "
            "adapter_config.json in it or in its adapter/"
        )
    run = adapter.parent if adapter.name == "adapter" else None
    settings: dict[str, Any] = {}
    if run and (run / "config.yaml").is_file():
        settings = read_yaml(run / "config.yaml")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name if run and settings else adapter.name)
    default = run if run and settings else ROOT / "outputs" / "export" / name
    return Trained(adapter, (output or default).absolute(), name, settings)


def _unfinished(run: Path) -> str:
    """A message for a run without an adapter: its newest checkpoint, and how to continue it."""
    checkpoints = CheckpointStore(run / "checkpoints").steps()
    at = (
        f"its newest checkpoint is step {int(checkpoints[-1].name[5:])}"
        if checkpoints
        else ("it has no checkpoint yet")
    )
    again = "give its training command again"
    recorded = json.loads((run / "environment.json").read_text(encoding="utf-8")).get("command")
    if isinstance(recorded, list) and recorded:
        script, *arguments = map(str, recorded)
        while "--resume" in arguments:  # such as `--resume never`, which would start it over
            at_flag = arguments.index("--resume")
            del arguments[at_flag : at_flag + 2]
        arguments = [a for a in arguments if not a.startswith("--resume=")]
        again = f"to go on with it:\n  ./run {Path(script).stem} {shlex.join(arguments)}"
    return f"{run}: the run is not finished: there is no adapter/ yet, and {at}; {again}"


def base_folder(trained: Trained, requested: str | None) -> tuple[str, Path]:
    """Name and folder of the base model in 16 or 32 bits, downloaded from the hub if needed.

    Raises:
        ConfigError: it cannot be reached, or holds quantised weights.
    """
    config = json.loads((trained.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    of_run = trained.run.get("model", {})
    name = requested or of_run.get("name") or config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{trained.adapter} names no base model; pass --base")
    revision = of_run.get("revision") if name == of_run.get("name") else None
    if not requested:
        name = QUANTISED_NAME.sub("", name)
    folder = Path(local_or_hub(name))
    if not folder.is_dir():
        folder = _fetch(name, revision)
    try:
        base = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name} is not a model: {error}") from None
    if "quantization_config" in base:
        raise ConfigError(
            f"{name} holds quantised weights, and merging into those would lose precision: pass "
            "the 16-bit model that it was made from as --base (export.base)"
        )
    return name, folder


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the base model '{name}' is out of reach: {first_line(error)}; pass a folder or "
            "another name with 16-bit weights as --base (export.base)"
        ) from None
