"""The command line of the training scripts: strict YAML plus overrides -> typed settings.

Nothing here imports torch, so that `--help` and every configuration error answer at once.
"""

import argparse
import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from scripts.common.errors import ConfigError, did_you_mean
from scripts.common.secrets import check_arguments, check_values
from scripts.common.settings import Section
from scripts.common.strict_yaml import parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]
# Arguments of the trainers that the scripts set themselves, and where the user says it instead.
OWNED = {
    "output_dir": "--output",
    "run_name": "run.name",
    "report_to": "tracking.report_to",
    "disable_tqdm": "run.verbose",
    "resume_from_checkpoint": "--resume",
    "reward_weights": "rewards",
    "max_length": "model.max_seq_length",
    "save_strategy": "training.save_steps",
    "logging_strategy": "training.logging_steps",
    "logging_first_step": "training.logging_steps",
    "logging_nan_inf_filter": "training.logging_steps",
}
NAMES = {
    "optim": "transformers/training_args.py:OptimizerNames",
    "lr_scheduler_type": "transformers/trainer_utils.py:SchedulerType",
}
S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Command(Generic[S]):
    """What the user asked for."""

    settings: S
    output: Path
    """The run folder."""
    resume: str
    """`auto`, `never` or the path of a checkpoint."""
    resume_anyway: bool
    """Go on from a checkpoint of a run with other settings, data or versions."""
    dry_run: bool


def parse_command_line(
    settings_class: type[S], config_class: str, story: str, argv: list[str] | None = None
) -> Command[S]:
    """Read `--config FILE [section.key=value ...] [--output DIR] [--resume ...] [--dry-run]`.

    `config_class` is the file and name of the trl class that `training.extra` must fit, such as
    `trl/trainer/dpo_config.py:DPOConfig`. `story` is shown by --help.

    Raises:
        ConfigError: a missing file or anything wrong in it, with the key's path.
    """
    check_arguments(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=story,
        epilog="settings (section.key: type = default):\n" + "\n".join(describe(settings_class)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, help="a YAML file of configs/")
    parser.add_argument("--output", type=Path, help="run folder (default: outputs/<run.name>)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest checkpoint of the run folder (auto, the default), start over "
        "and move the old folder aside (never), or go on from a checkpoint folder",
    )
    parser.add_argument(
        "--resume-anyway",
        action="store_true",
        help="go on even if settings, data or versions differ from the checkpoint's",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything up to the model, then stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args(argv)
    settings = load_settings(settings_class, arguments.config, arguments.overrides)
    check_extra(settings.model_dump()["training"], config_class)
    check_packages(settings.model_dump()["tracking"]["report_to"])
    output = arguments.output or ROOT / "outputs" / settings.model_dump()["run"]["name"]
    return Command(
        settings,
        output.absolute(),
        arguments.resume,
        arguments.resume_anyway,
        arguments.dry_run,
    )


def load_settings(settings_class: type[S], path: Path, overrides: list[str] | None = None) -> S:
    """The settings of a YAML file with `section.key=value` overrides applied.

    A relative config path is looked for here first, then under the project's root.

    Raises:
        ConfigError: naming every offending key and, for an unknown one, the nearest valid name.
    """
    if not path.is_absolute() and not path.exists():
        if not (ROOT / path).exists():
            own = [str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.yaml")]
            raise ConfigError(f"no config file at '{path}'.{did_you_mean(str(path), own)}")
        path = ROOT / path
    return check_settings(settings_class, read_yaml(path), str(path), overrides)


def check_settings(
    settings_class: type[S], values: dict[str, Any], where: str, overrides: list[str] | None = None
) -> S:
    """`values`, which came from `where`, with overrides applied, as settings.

    Raises:
        ConfigError: naming every offending key and, for an unknown one, the nearest valid name.
    """
    for override in overrides or []:
        _apply_override(values, override)
    check_values(values, where)
    try:
        return settings_class.model_validate(values)
    except ValidationError as error:
        problems = [_explain(settings_class, details) for details in error.errors()]
        raise ConfigError(f"{where}: " + "\n       ".join(problems)) from None


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
    """One line a person can act on for one of pydantic's findings."""
    location = [str(part) for part in details["loc"]]
    path = ".".join(location)
    if details["type"] == "extra_forbidden":
        fields = _fields_at(settings_class, location[:-1])
        return f"{path}: unknown setting.{did_you_mean(location[-1], fields)}"
    if details["type"] == "missing":
        return f"{path}: missing; it has no default"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if details["type"] == "value_error":
        return f"{path}: {message}" if path else message
    value = details["input"]
    return f"{path}: {message}, got {value!r} ({type(value).__name__})"


def _fields_at(settings_class: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the settings inside the section at `location`."""
    current = settings_class
    for name in location:
        if name.isdigit():  # a place in a list
            continue
        field = current.model_fields.get(name)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section class in an annotation: `Source`, `Source | None` or `list[Source]`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def describe(settings_class: type[Section], prefix: str = "") -> list[str]:
    """Help lines for every setting: path, type, default and what it means."""
    lines: list[str] = []
    for name, field in settings_class.model_fields.items():
        inner = _section_of(field.annotation)
        annotation = field.annotation
        if inner is not None and get_origin(annotation) is not list:
            if annotation is not inner:
                lines.append(f"  {prefix}{name}: section = None\n      {field.description}")
            lines += describe(inner, f"{prefix}{name}.")
            continue
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kind = kind.replace("typing.", "").replace(f"{Section.__module__}.", "")
        default = "required" if field.is_required() else f"= {field.default!r}"
        meaning = " ".join((field.description or "").split())
        lines.append(f"  {prefix}{name}: {kind} {default}\n      {meaning}")
    return lines


def check_extra(training: dict[str, Any], config_class: str) -> None:
    """Check that every key of `training.extra` is an argument of the trainer's config class.

    Raises:
        ConfigError: an unknown key, or one that has a setting of its own.
    """
    valid = config_fields(config_class)
    for key, source in NAMES.items():
        names = enum_values(source)
        if training[key] not in names:
            raise ConfigError(
                f"training.{key}: there is no {training[key]!r}."
                f"{did_you_mean(training[key], names)}"
            )
    for key in training["extra"]:
        if key in OWNED:
            raise ConfigError(f"training.extra.{key}: the scripts set it; use {OWNED[key]}")
        if key in training:
            raise ConfigError(f"training.extra.{key}: write it as training.{key}")
        if key not in valid:
            raise ConfigError(
                f"training.extra.{key}: {config_class.split(':')[1]} has no such argument."
                f"{did_you_mean(key, valid)}"
            )
        try:
            kind = eval(valid[key], {"Any": Any, "Literal": Literal})
        except NameError:  # a class of the library's own
            continue
        value = training["extra"][key]
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            raise ConfigError(
                f"training.extra.{key}: should be {valid[key]}, got {value!r} "
                f"({type(value).__name__})"
            ) from None


def check_packages(report_to: list[str]) -> None:
    """Check that what `tracking.report_to` names is installed.

    Raises:
        ConfigError: it is not, with the command that installs it.
    """
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.report_to: the package '{name}' is not installed; "
                f".venv/bin/uv pip install {name}"
            )


def enum_values(source: str) -> list[str]:
    """The values of an Enum of a library, as `package/file.py:Name`, read from its source."""
    relative, name = source.split(":")
    tree = _parse(relative)
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return [
        str(item.value.value)
        for item in found.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def _parse(relative: str) -> ast.Module:
    package, _, rest = relative.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the package {package} is not installed; run ./run doctor")
    return ast.parse((Path(spec.origin).parent / rest).read_text(encoding="utf-8"))


def config_fields(config_class: str) -> dict[str, str]:
    """Names and types of the fields of a trl config class and its parents, from their source.

    The classes themselves are out of reach here: importing them takes torch and many seconds.
    """
    relative, name = config_class.split(":")
    sources = [relative, "trl/trainer/base_config.py", "transformers/training_args.py"]
    fields: dict[str, str] = {}
    for source in sources:
        for node in _parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name in (
                name,
                "_BaseConfig",
                "TrainingArguments",
            ):
                fields |= {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return fields
