"""What to talk to: a run, an adapter, a model, a GGUF file or a server; read without torch."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.base.errors import ConfigError, did_you_mean
from posttrain.base.paths import ROOT, here_or_project, is_gguf, is_url, run_command, shown
from posttrain.model.provenance import run_of
from posttrain.model.trust import check_model_folder
from posttrain.run.checkpoint import CheckpointStore
from posttrain.run.record import number, section
from posttrain.settings import Prompt, adapters
from posttrain.settings.command import check_settings

Kind = Literal["adapter", "model", "gguf", "url"]


@dataclass(frozen=True)
class Source:
    """A model that can be talked to."""

    kind: Kind
    """An adapter has two sides: off and on."""
    model: str
    """Folder, file, hub name or URL."""
    run: dict[str, Any]
    """The settings of the run that it comes from; empty without one."""
    folder: Path | None = None
    """That run's folder."""

    @property
    def trained_length(self) -> int:
        """Tokens of prompt and reply that the run was trained with; 0 without one."""
        return int(number(section(self.run, "model").get("max_seq_length")) or 0)

    @property
    def prompt(self) -> Prompt:
        """The run's system prompt, worked examples and variables of the chat template."""
        return check_settings(Prompt, dict(section(self.run, "prompt")), f"{self.folder}: prompt")


def find(name: str) -> Source:
    """The model that `name` means: a path in this folder or the project, a hub name or a URL;
    raises ConfigError if there is none."""
    if is_url(name):
        return Source("url", name, {})
    path = here_or_project(name).absolute()
    if name.endswith(".gguf"):
        is_gguf(str(path) if path.exists() else name)  # raises if there is no such file
        return _of_run("gguf", path)
    if not path.is_dir():
        _refuse_path(name)
        return Source("model", name, {})
    for folder in (path / "adapter", path):
        if (folder / adapters.CONFIG).is_file():
            adapters.base_of(folder)  # raises if the base model is gone
            return _of_run("adapter", folder)
    if (path / "config.json").is_file():
        check_model_folder(path, "the model")
        return _of_run("model", path)
    raise ConfigError(_no_model(path))


def _of_run(kind: Kind, path: Path) -> Source:
    folder, run = run_of(str(path))
    return Source(kind, str(path), run, folder)


def _refuse_path(name: str) -> None:
    """Raise for what is meant as a path; a hub name is one word, or OWNER/NAME."""
    parts = Path(name).parts or ("",)
    is_path = name.startswith((".", "/", "~", "outputs/")) or len(parts) > 2
    if is_path or (len(parts) == 2 and any(Path(p, parts[0]).is_dir() for p in (".", ROOT))):
        parent = Path(os.path.expanduser(name)).parent
        beside = [shown(p) for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise ConfigError(
            f"there is no folder '{name}'.{did_you_mean(name, beside)} Give a run folder, an "
            "adapter, a model's folder or hub name, a GGUF file, or the URL of a server"
        )
    if (run := ROOT / "outputs" / name).is_dir():
        raise ConfigError(f"there is no model '{name}' here. Did you mean '{shown(run)}'?")


def _no_model(folder: Path) -> str:
    """Why a folder cannot be talked to, and what can."""
    if not (folder / "config.yaml").is_file():
        return (
            f"{shown(folder)} holds no model: there is no adapter_config.json, config.json or "
            "adapter/ in it. Give a run folder, an adapter, or a model's folder"
        )
    advice = "run its training command again to resume it"
    if steps := CheckpointStore(folder / "checkpoints").steps():
        newest = shlex.quote(shown(steps[-1]))
        advice += f", or talk to its newest checkpoint:\n  {run_command()} chat {newest}"
    return f"{shown(folder)}: the run is not finished, so it has no adapter/ yet; {advice}"
