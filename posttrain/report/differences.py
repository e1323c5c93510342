"""Settings that differ: from their defaults, or between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from posttrain.run.record import Run, Settings
from posttrain.settings import DPOSettings
from posttrain.settings.command import SETTINGS


def from_defaults(run: Run) -> list[tuple[str, str, str]]:
    """(key path, value, default) of every setting that is not at its default; a setting without a
    default is always there, with an empty one."""
    defaults = _defaults_of(run)
    return [
        (key, _shown(value), _shown(defaults[key]) if key in defaults else "")
        for key, value in _leaves(run.config, defaults)
        if key not in defaults or value != defaults[key]
    ]


def between(runs: Sequence[Run]) -> list[list[str]]:
    """Key path, then the value in each run, of every setting in which runs that have it differ."""
    values = [dict(_leaves(run.config, _defaults_of(run))) for run in runs]
    keys = dict.fromkeys(key for each in values for key in each if key != "run.name")
    rows = []
    for key in keys:
        known = [each[key] for each in values if key in each]  # DPO and GRPO do not have the same
        if any(value != known[0] for value in known):
            rows.append([key, *(_shown(each[key]) if key in each else "" for each in values)])
    return rows


def _defaults_of(run: Run) -> Settings:
    return dict(_defaults(SETTINGS.get(run.method.lower(), DPOSettings)))


def _leaves(values: Mapping[str, Any], stop: Mapping[str, Any], prefix: str = "") -> Iterator[Any]:
    """(key path, value) of nested settings; a path in `stop` is not gone into."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in stop:
            yield from _leaves(value, stop, f"{key}.")
        else:
            yield key, value


def _defaults(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, default) of every setting that has one, as it stands in config.yaml."""
    for name, field in settings.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _defaults(kind, f"{key}.")
        elif not field.is_required():
            yield key, field.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return str(value)
