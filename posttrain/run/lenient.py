"""Dataclasses from JSON that may be damaged or of an earlier version."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], values: object) -> T:
    """A `kind`, a dataclass whose fields have defaults, from a JSON object.

    A field that is missing, or whose value is of another type or not finite, keeps its default; a
    list or mapping loses the entries that do not fit. Anything but an object gives the defaults.
    """
    if not isinstance(values, Mapping):
        return kind()
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]  # T is a dataclass
    names = [field.name for field in known if field.name in values]
    return kind(**{n: fit for n in names for fit in _fitting(hints[n], values[n])})


def mapping_of(kind: type[T], values: object) -> dict[str, T]:
    """The objects in a JSON object, each as a `kind`."""
    if not isinstance(values, Mapping):
        return {}
    return {k: from_json(kind, v) for k, v in values.items() if isinstance(v, Mapping)}


def _fitting(hint: Any, value: object) -> list[Any]:
    """The value as the type that a field has; nothing where it does not fit."""
    kind, inner = get_origin(hint), get_args(hint)
    if hint in (object, Any):
        return [value]
    if kind in (Union, types.UnionType):
        return _fitting(inner[0], value)  # `X | None`, whose default is None
    if kind is list and isinstance(value, list):
        return [[fit for item in value for fit in _fitting(inner[0], item)]]
    if isinstance(value, Mapping):
        if kind is dict:
            return [{k: fit for k, item in value.items() for fit in _fitting(inner[1], item)}]
        known = isinstance(hint, type) and is_dataclass(hint)
        return [from_json(hint, value)] if known else []
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return [float(value)] if math.isfinite(value) else []
    return [value] if type(value) is hint else []
