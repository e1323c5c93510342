"""The last lines of a run: its table, where things are, and the commands that may come next."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT, run_command, shown
from posttrain.run.record import Settings, section
from posttrain.settings.strict_yaml import read_yaml


def next_commands(run: Path) -> str:
    """The commands a user may want now, as they have to be typed in this folder."""
    runner, folder = run_command(), shlex.quote(shown(run))
    adapter = shlex.quote(shown(run / "adapter"))
    try:
        settings: Settings = read_yaml(run / "config.yaml")
    except ConfigError:
        settings = {}
    return _next(
        f"{runner} chat {folder}",
        f"{runner} export {folder} --to gguf:q8_0",
        f"{runner} evaluate --model {adapter} {_evaluation(settings)}",
    )


def after_export(folder: Path, made: Mapping[str, str], name: str, settings: Settings) -> str:
    """The commands that use what was exported.

    Args:
        made: Paths below `folder` by target, such as `{"gguf:q8_0": "gguf/m-q8_0.gguf"}`.
        name: What the model is to be called in Ollama.
        settings: Those of the run that was exported; empty without one.
    """
    commands = []
    if "ollama" in made:
        modelfile = shlex.quote(shown(folder / made["ollama"]))
        commands.append(f"ollama create {name} -f {modelfile} && ollama run {name}")
    last = [path for target, path in made.items() if target != "ollama"][-1:]
    for model in (shlex.quote(shown(folder / path)) for path in last):
        commands.append(f"{run_command()} evaluate --model {model} {_evaluation(settings)}")
    return _next(*commands)


def _next(*commands: str) -> str:
    return "\n  ".join(("\nNext", *commands))


def _evaluation(settings: Settings) -> str:
    """What to score next: the run's own problems where they are a local file here."""
    if settings.get("method") in ("grpo", "sft"):
        data = section(settings, "data")
        own = section(data, "eval" if settings["method"] == "grpo" else "problems")
        if data.get("answers") == "text":
            return f"--data {_local(own) or shlex.quote(str(own.get('path', '')))}"
        return f"--data {_local(own) or 'gsm8k'} --samples 8"
    also = section(settings, "evaluation").get("also")
    for each in also if isinstance(also, list) else []:
        if isinstance(each, dict) and (local := _local(each)):
            return f"--data {local} --language {each.get('language', 'en')}"
    return "--data mgsm-fr --language fr"


def _local(source: Settings) -> str | None:
    """The file of a Source as it is typed here, None where it is not on this machine."""
    path = str(source.get("path", ""))
    file = next((p for p in (Path(path), ROOT / path) if path and p.is_file()), None)
    return None if file is None else shlex.quote(shown(file))
