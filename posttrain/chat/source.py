"""What to talk to: a run, an adapter, a model, a GGUF file or a server, found without torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.base.errors import ConfigError, did_you_mean
from posttrain.base.paths import ROOT, is_url, run_command, shown
from posttrain.model.llama_server import is_gguf
from posttrain.model.trust import check_model_folder
from posttrain.run.checkpoint import CheckpointStore
from posttrain.scoring.provenance import run_of
from posttrain.settings import Prompt, adapters
from posttrain.settings.command import check_settings


@dataclass(frozen=True)
class Source:
    """A model that can be talked to."""

    kind: Literal["adapter", "model", "gguf", "url"]
    """An adapter has two sides: off and on."""
    model: str
    """Folder, file, hub name or URL."""
    run: dict[str, Any]
    """The settings of the run that it comes from; empty without one."""
    folder: Path | None = None
    """That run's folder."""

    @property
    def template_variables(self) -> dict[str, Any]:
        """Those of the chat template that the run was trained with."""
        return self.prompt.chat_template_kwargs

    @property
    def trained_length(self) -> int:
        """Tokens of prompt and reply that the run was trained with; 0 without one."""
        return int((self.run.get("model") or {}).get("max_seq_length", 0))

    @property
    def prompt(self) -> Prompt:
        """The run's system prompt and worked examples."""
        return check_settings(Prompt, dict(self.run.get("prompt") or {}), f"{self.folder}: prompt")


def find(name: str) -> Source:
    """The model that `name` means.

    Raises:
        ConfigError: there is none; says what is missing, and what to do.
    """
    if is_url(name):
        return Source("url", name, {})
    if name.endswith(".gguf"):
        path = next((p for p in _places(name) if p.is_file()), Path(name))
        is_gguf(str(path))  # raises where there is no such file
        return _of_run("gguf", path)
    folder = next((p for p in _places(name) if p.is_dir()), None)
    if folder is None:
        _refuse_missing(name)
        return Source("model", name, {})
    if (folder / "adapter" / adapters.CONFIG).is_file():
        return _of_run("adapter", folder / "adapter")
    if (folder / adapters.CONFIG).is_file():
        return _of_run("adapter", folder)
    if (folder / "config.json").is_file():
        check_model_folder(folder, "the model")
        return _of_run("model", folder)
    raise ConfigError(_no_model(folder))


def _places(name: str) -> tuple[Path, Path]:
    """A path in this folder, else in the project."""
    return Path(name).expanduser().absolute(), ROOT / name


def _of_run(kind: Literal["adapter", "model", "gguf"], path: Path) -> Source:
    if kind == "adapter":
        adapters.base_of(path)  # raises where the base model is gone
    folder, run = run_of(str(path))
    return Source(kind, str(path), run, folder)


def _refuse_missing(name: str) -> None:
    """Raise for what is meant as a path; a hub name is one word, or two with a slash between."""
    first, *rest = Path(name).parts or ("",)
    parent = Path(name).expanduser().parent
    is_path = name.startswith((".", "/", "~", "outputs/")) or len(rest) > 1
    for place in (Path.cwd(), ROOT):
        is_path = is_path or bool(rest and (place / first).is_dir())
    if not is_path:
        if (run := ROOT / "outputs" / name).is_dir():
            raise ConfigError(f"there is no model '{name}' here. Did you mean '{shown(run)}'?")
        return
    places = [p for p in (parent, ROOT / parent) if p.is_dir()]
    beside = {shown(child) for p in places[:1] for child in p.iterdir() if child.is_dir()}
    raise ConfigError(
        f"there is no folder '{name}'.{did_you_mean(name, beside)} Give a run folder, an adapter, "
        "a model's folder or hub name, a GGUF file, or the URL of a server"
    )


def _no_model(folder: Path) -> str:
    """Why a folder cannot be talked to, and what can."""
    if not (folder / "config.yaml").is_file():
        return (
            f"{shown(folder)} holds no model: there is no adapter_config.json, config.json or "
            "adapter/ in it. Give a run folder, an adapter, or a model's folder"
        )
    steps = CheckpointStore(folder / "checkpoints").steps()
    if not steps:
        return (
            f"{shown(folder)}: the run has no adapter and no checkpoint yet; give its training "
            "command again to go on with it"
        )
    newest = shlex.quote(shown(steps[-1]))
    return (
        f"{shown(folder)}: the run is not finished, so it has no adapter/ yet. Talk to its newest "
        f"checkpoint:\n  {run_command()} chat {newest}\nor give its training command again"
    )
