"""Upload a trained model to the hub: only on request, private by default, only proven files."""

import json
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, first_line, hub_errors
from posttrain.base.files import read_object
from posttrain.base.paths import ROOT
from posttrain.report.model_card import render_model_card
from posttrain.run.record import read_run
from posttrain.settings.adapters import BASE, CONFIG


def push(run: Path, repository: str, exports: list[str], private: bool = True) -> str:
    """Upload exports of a run, by their names in export.json, or its adapter if none is named, with
    the model card; returns the URL of the repository.

    It is OWNER/NAME on the hub, created if it does not exist, then `private` or not. Raises
    ConfigError if an export is missing or was not proven, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    contents: dict[str, Any] = {file.name: file for file in to_upload(run, exports)}
    if CONFIG in contents:  # without the path of the base model on this machine
        config = read_object(contents[CONFIG])
        base = config[BASE]
        if Path(base).is_absolute() or (ROOT / base).is_dir():
            config[BASE] = Path(base).name
        contents[CONFIG] = json.dumps(config, indent=2).encode("utf-8")
    contents["README.md"] = render_model_card(run, repository, exports).encode("utf-8")
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(url.repo_id, operations, commit_message="Upload of a trained model")
    except hub_errors(ValueError) as error:
        raise ConfigError(
            f"--push {repository}: the hub refuses, or is out of reach: {first_line(error)} (is "
            "HF_TOKEN set?)"
        ) from None
    return str(url)


def to_upload(run: Path, exports: list[str]) -> list[Path]:
    """The files that a push uploads, each to the top folder of the repository; raises ConfigError
    if an export is missing or was not proven."""
    recorded = read_run(run).exports
    proven = sorted(name for name, entry in recorded.items() if entry.proven)
    if missing := [name for name in exports if name not in proven]:
        raise ConfigError(
            f"--push: {run} has no proven export {', '.join(missing)}; proven are: "
            f"{', '.join(proven) or 'none'}"
        )
    paths = [run / recorded[name].path for name in exports] or [run / "adapter"]
    files = [f for path in paths for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [file for file in files if file.name != "README.md"]  # the run's model card replaces it
