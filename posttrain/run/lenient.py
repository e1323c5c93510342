"""Dataclasses from JSON that may be damaged or of an earlier version."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class _Unfit(Exception):
    """A value is not of the type that a field has."""


def from_json(kind: type[T], values: object) -> T:
    """A `kind`, a dataclass whose fields have defaults, from a JSON object.

    A field that is missing, or whose value is of another type or not finite, keeps its default; a
    list or mapping loses the entries that do not fit. Anything but an object gives the defaults.
    """
    if not isinstance(values, Mapping):
        return kind()
    hints, known = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]  # T is a dataclass
        try:
            known[field.name] = _convert(hints[field.name], values[field.name])
        except (KeyError, _Unfit):
            continue
    return kind(**known)


def mapping_of(kind: type[T], values: object) -> dict[str, T]:
    """The objects in a JSON object, each as a `kind`."""
    if not isinstance(values, Mapping):
        return {}
    return {k: from_json(kind, v) for k, v in values.items() if isinstance(v, Mapping)}


def _convert(hint: Any, value: object) -> object:
    if hint in (object, Any):
        return value
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return _convert(inner[0], value)  # `X | None`, whose default is None
    if kind is list and isinstance(value, list):
        return [each for item in value for each in _fitting(inner[0], item)]
    if kind is dict and isinstance(value, Mapping):
        return {k: each for k, item in value.items() for each in _fitting(inner[1], item)}
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_json(hint, value)
    if hint is float and not isinstance(value, bool) and isinstance(value, int | float):
        if math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise _Unfit


def _fitting(hint: Any, value: object) -> list[object]:
    try:
        return [_convert(hint, value)]
    except _Unfit:
        return []
