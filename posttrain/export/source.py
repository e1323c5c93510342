"""Find what to export: an adapter, its base model in 16 bits, and the run that trained it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, first_line, hub_errors
from posttrain.base.files import read_object
from posttrain.base.paths import ROOT
from posttrain.model.pretrained import local_or_hub
from posttrain.model.provenance import run_of
from posttrain.settings.adapters import BASE, CONFIG, QUANTISED_NAME, read_adapter

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


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
    """The adapter in a run folder, or in an adapter folder; raises ConfigError if the path is
    neither of them, or the run is not finished."""
    path = path.absolute()
    adapter = path / "adapter" if (path / "adapter" / CONFIG).is_file() else path
    if not (adapter / CONFIG).is_file():
        if (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path}: the run is not finished, so it has no adapter/ yet; run its training "
                "command again to resume it, or export one of its checkpoints/"
            )
        raise ConfigError(
            f"{path} is neither a run folder with an adapter nor an adapter folder: there is no "
            f"{CONFIG} in it or in its adapter/"
        )
    folder, run = run_of(str(adapter))
    own = folder is not None and adapter.resolve() == folder / "adapter"  # no checkpoint of it
    parts = [folder.name] if folder else []
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts if own else [*parts, adapter.name]))
    default = adapter.parent if own else ROOT / "outputs" / "export" / name
    return Trained(adapter, (output or default).absolute(), name, run)


def base_folder(trained: Trained, requested: str | None) -> tuple[str, Path]:
    """Name and folder of the base model in 16 or 32 bits, downloaded from the hub if needed. Raises
    ConfigError if it cannot be reached, or holds quantised weights."""
    model = trained.run.get("model", {})
    name = requested or model.get("name") or read_adapter(trained.adapter).get(BASE)
    if not name:
        raise ConfigError(f"{trained.adapter} names no base model; pass --base")
    revision = model.get("revision") if name == model.get("name") else None
    if not requested:
        name = QUANTISED_NAME.sub("", name)
    folder = Path(local_or_hub(name))
    if not folder.is_dir():
        folder = _fetch(name, revision)
    if "quantization_config" in read_object(folder / "config.json"):
        raise ConfigError(
            f"{name} holds quantised weights, and merging into those would lose precision: pass "
            "the 16-bit model that it was made from as --base (export.base)"
        )
    return name, folder


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES))
    except hub_errors(ValueError) as error:
        raise ConfigError(
            f"the base model '{name}' is out of reach: {first_line(error)}; pass a folder or "
            "another name with 16-bit weights as --base (export.base)"
        ) from None
