"""The commands that may come next, as they have to be typed in this folder."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from posttrain.base.paths import ROOT, run_command, shown
from posttrain.run.record import Settings, section


def next_commands(run: Path, settings: Settings) -> str:
    """What a user may want after a run with these settings."""
    folder = _typed(run)
    return _next(
        f"{run_command()} chat {folder}",
        f"{run_command()} export {folder} --to gguf:q8_0",
        _evaluate(run / "adapter", settings),
    )


def after_export(folder: Path, made: Mapping[str, str], name: str, settings: Settings) -> str:
    """What uses the exported files.

    Args:
        made: Paths below `folder` by target, such as `{"gguf:q8_0": "gguf/m-q8_0.gguf"}`.
        name: What the model is to be called in Ollama.
        settings: Those of the run that was exported; empty without one.
    """
    commands = []
    if "ollama" in made:
        modelfile = _typed(folder / made["ollama"])
        commands.append(f"ollama create {name} -f {modelfile} && ollama run {name}")
    files = [path for target, path in made.items() if target != "ollama"]
    return _next(*commands, *(_evaluate(folder / path, settings) for path in files[-1:]))


def _next(*commands: str) -> str:
    return "\n  ".join(("\nNext", *commands))


def _typed(path: Path) -> str:
    return shlex.quote(shown(path))


def _evaluate(model: Path, settings: Settings) -> str:
    """Score the model on the run's own problems where they are a local file here."""
    data = "mgsm-fr --language fr"
    if settings.get("method") in ("grpo", "sft"):
        rows = section(settings, "data")
        own = section(rows, "eval" if settings["method"] == "grpo" else "problems")
        text = rows.get("answers") == "text"
        data = _local(own) or (shlex.quote(str(own.get("path", ""))) if text else "gsm8k")
        data += " --samples 8" * (not text)
    else:
        also = section(settings, "evaluation").get("also")
        for each in also if isinstance(also, list) else []:
            if isinstance(each, dict) and (local := _local(each)):
                data = f"{local} --language {each.get('language', 'en')}"
                break
    return f"{run_command()} evaluate --model {_typed(model)} --data {data}"


def _local(source: Settings) -> str | None:
    """The file of a Source as it is typed here, None where it is not on this machine."""
    path = str(source.get("path", ""))
    file = next((p for p in (Path(path), ROOT / path) if path and p.is_file()), None)
    return _typed(file) if file else None
