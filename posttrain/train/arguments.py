"""The arguments of a trainer: those requested, and how trl or Unsloth changed them."""

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
    """The trainer's config object, and all arguments that were requested.

    Raises:
        ConfigError: the class refuses a value.
    """
    requested = {**training.model_dump(exclude={"extra"}), **training.extra, **owned}
    try:
        with policy.quiet(verbose):
            return config_class(**requested), requested
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training: {config_class.__name__} refuses it: {error}") from None


def owned_arguments(run: RunFolder, name: str, report_to: Sequence[str]) -> dict[str, Any]:
    """The arguments that the user cannot set, the same for both trainers."""
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


def changes(requested: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Arguments whose value in the trainer is not the requested one: `{name: {asked, used}}`.

    trl and Unsloth change some without a message (precision, optimizer, batch size).
    """
    fields = {field.name for field in dataclasses.fields(arguments)}
    changed = {}
    for name, wanted in requested.items():
        if wanted is None:  # the library chooses
            continue
        used = getattr(arguments, name) if name in fields else None
        used = getattr(used, "value", used)  # the text of an enum member
        if used != wanted and not _same(wanted, used):
            changed[name] = {"asked": wanted, "used": used}
    return changed


def _same(wanted: Any, used: Any) -> bool:
    """Whether two values are equal. transformers changes the form of some: it puts a value in a
    list, and makes 'none' an empty list."""
    return used == [wanted] or (wanted == "none" and used == []) or str(used) == str(wanted)


def report_changes(requested: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Print the changed arguments, one line each, and return them."""
    changed = changes(requested, arguments)
    for name, values in changed.items():
        print(f"note: training.{name} was {values['asked']!r}; here it is {values['used']!r}")
    return changed
