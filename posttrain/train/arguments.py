"""The arguments of a trainer: what was asked for, and what trl or Unsloth made of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.model import policy
from posttrain.run.folder import RunFolder
from posttrain.settings import Training


def build_arguments(
    config_class: Any, training: Training, owned: dict[str, Any], verbose: bool
) -> tuple[Any, dict[str, Any]]:
    """The trainer's config object, and every argument that it was asked for.

    Raises:
        ConfigError: the class refuses a value.
    """
    asked = {**training.model_dump(exclude={"extra"}), **training.extra, **owned}
    try:
        with policy.quiet(verbose):
            return config_class(**asked), asked
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {config_class.__name__} refuses it: {error}") from None


def owned_arguments(run: RunFolder, name: str, report_to: Sequence[str]) -> dict[str, Any]:
    """The arguments that the scripts decide, the same for both trainers."""
    return {
        "output_dir": str(run.checkpoints.staging),
        "run_name": name,
        "report_to": [name for name in report_to if name != "wandb"] or "none",  # wandb_log's
        "disable_tqdm": True,
        "save_strategy": "steps",
        "logging_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
    }


def changes(asked: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Arguments whose value in the trainer is not what was asked for: `{name: {asked, used}}`.

    trl and Unsloth adjust some behind the user's back (precision, optimizer, batch size).
    """
    fields = {field.name for field in dataclasses.fields(arguments)}
    found = {}
    for name, wanted in asked.items():
        if wanted is None:  # asked for the library's own choice
            continue
        used = getattr(arguments, name) if name in fields else None
        used = getattr(used, "value", used)  # an enum member stands for its name
        if used != wanted and not _same(wanted, used):
            found[name] = {"asked": wanted, "used": used}
    return found


def _same(wanted: Any, used: Any) -> bool:
    """Equal but for a form that transformers gives it: a list of one, 'none' as no integration."""
    return used == [wanted] or (wanted == "none" and used == []) or str(used) == str(wanted)


def report_changes(asked: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Print the changes, one line each, and return them for the record."""
    found = changes(asked, arguments)
    for name, values in found.items():
        print(f"note: training.{name} was {values['asked']!r}; here it is {values['used']!r}")
    return found
