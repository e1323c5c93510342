"""The command line of the training scripts: strict YAML plus overrides -> typed settings.

Nothing here imports torch, so that `--help` and every configuration error answer at once.
"""

import copy
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from posttrain.base.errors import ConfigError, did_you_mean, expected, nearest
from posttrain.base.paths import ROOT, here_or_project, run_command
from posttrain.settings import DPOSettings, GRPOSettings, SFTSettings
from posttrain.settings.adapters import with_adapter
from posttrain.settings.extra import check_extra
from posttrain.settings.help import Parser, section_of
from posttrain.settings.secrets import check_arguments, check_values
from posttrain.settings.section import FORMER, Section, without_removed
from posttrain.settings.strict_yaml import parse_yaml, read_yaml

SETTINGS: dict[str, type[Section]] = {"sft": SFTSettings, "dpo": DPOSettings, "grpo": GRPOSettings}
"""The settings of each method."""
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Command(Generic[S]):
    """The command line, read and checked."""

    settings: S
    output: Path
    """The run folder."""
    resume: str
    """`auto`, `never` or the path of a checkpoint."""
    resume_anyway: bool
    """Resume from a checkpoint of a run with other settings, data or versions."""
    dry_run: bool
    config: Path
    """The YAML file, as given."""
    command: str
    """The same command without --dry-run, as it is typed in this folder."""

    def verdict(self) -> str:
        """The last line of a dry run that passed."""
        return f"\nConfig and data are fine; nothing was trained. To train: {self.command}"


def parse_command_line(
    settings_class: type[S], story: str | None, argv: list[str] | None = None
) -> Command[S]:
    """Read the command line, of which --help shows `story`. Raises ConfigError for a missing file
    or anything wrong in it, with the key's path, and where a launcher started several processes."""
    given = sys.argv[1:] if argv is None else argv
    check_arguments(given)
    method = settings_class.model_fields["method"].default
    parser = Parser(settings_class, story, given, prog=f"{run_command()} {method}")
    add = parser.add_argument
    add("--config", required=True, type=Path, help="a YAML file of configs/")
    add("--output", type=Path, help="run folder (default: outputs/<run.name>)")
    add(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="resume from the newest checkpoint of the run folder (auto, the default), start over "
        "and move the old folder aside (never), or resume from a checkpoint folder",
    )
    help_text = "resume even if settings, data or versions differ from the checkpoint's"
    add("--resume-anyway", action="store_true", help=help_text)
    add("--dry-run", action="store_true", help="check everything short of loading the model")
    add("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    settings: Any = load_settings(settings_class, args.config, args.overrides)
    trainer = f"trl/trainer/{method}_config.py:{method.upper()}Config"
    check_extra(settings.training.model_dump(), trainer)
    check_packages(settings.tracking.report_to)
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(
            f"WORLD_SIZE={processes}: a run is one process on one GPU; start it without accelerate "
            "launch or torchrun (or unset WORLD_SIZE)"
        )
    output = args.output or ROOT / "outputs" / settings.run.name
    trains = [method, *(arg for arg in given if arg != "--dry-run")]
    return Command(
        settings,
        output.absolute(),
        args.resume,
        args.resume_anyway,
        args.dry_run,
        args.config,
        f"{run_command()} {shlex.join(trains)}",
    )


def load_settings(settings_class: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """The settings of a YAML file with `section.key=value` overrides applied, and those of
    `model.adapter` filled in; the file is in this folder or in the project."""
    file = here_or_project(path)
    if not file.exists():
        configs = {p.stem: f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.yaml"))}
        near = nearest(path.stem, configs)
        hint = (
            f"Did you mean '{configs[near]}'?" if near else f"Valid: {', '.join(configs.values())}"
        )
        raise ConfigError(f"no config file at '{path}'. {hint}")
    return check_settings(settings_class, read_yaml(file), str(file), overrides, start=True)


def check_settings(
    settings_class: type[S],
    values: dict[str, Any],
    where: str,
    overrides: Sequence[str] = (),
    start: bool = False,
) -> S:
    """`values`, which came from `where`, with overrides applied, as settings. With `start`, those
    of `model.adapter` are filled in. The ConfigError names every offending key and, for an unknown
    one, the nearest valid name."""
    of_file = without_removed(values)
    values = copy.deepcopy(of_file)
    for override in overrides:
        _apply_override(values, override)
    check_values(values, where)
    method = str(values.get("method"))
    if SETTINGS.get(method, settings_class) != settings_class:
        raise ConfigError(f"{where}: this is a config of ./run {method}")
    values = with_adapter(values) if start else values
    try:
        return settings_class.model_validate(values)
    except ValidationError:
        faults = _faults(settings_class, values)
        # What is not wrong in the file came with the overrides.
        in_file = _faults(settings_class, of_file) if overrides else faults
        lines = [f"{where if fault in in_file else 'command line'}: {fault}" for fault in faults]
        raise ConfigError("\n       ".join(lines)) from None


def _faults(settings_class: type[Section], values: dict[str, Any]) -> list[str]:
    try:
        settings_class.model_validate(values)
    except ValidationError as error:
        return [_explain(settings_class, details) for details in error.errors()]
    return []


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in `values`; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"'{override}' is not of the form section.key=value")
    target = values
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{override}': '{key}' is not a section")
        target = inner
    target[keys[-1]] = parse_yaml(text, f"override {path}")


def _explain(settings_class: type[BaseModel], details: ErrorDetails) -> str:
    """One line a person can act on for one of pydantic's errors."""
    location = [str(part) for part in details["loc"]]
    path = ".".join(location)
    if details["type"] == "extra_forbidden":
        if path in FORMER:
            return f"{path}: this setting was removed; delete it"
        names = _names_at(settings_class, location[:-1])
        hint = did_you_mean(location[-1], names) or " --help all lists the settings."
        return f"{path}: unknown setting.{hint}"
    if details["type"] == "missing":
        return f"{path}: missing, and it has no default; start from a copy of a file in configs/"
    if details["type"] == "value_error":
        message = details["msg"].removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    return f"{path}: {expected(details)}"


def _names_at(settings_class: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the settings inside the section at `location`."""
    for name in location:
        if not name.isdigit():  # an index of a list
            inner = section_of(settings_class.model_fields[name].annotation)
            settings_class = inner or settings_class
    return list(settings_class.model_fields)


def check_packages(report_to: list[str]) -> None:
    """Raise ConfigError for a tracker that is not installed, with the command that installs it."""
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.report_to: the package '{name}' is not installed; "
                f".venv/bin/uv pip install {name}"
            )
