"""Dataclasses from JSON that may be damaged or of an earlier version."""

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def from_json(kind: type[T], values: object) -> T:
    """A `kind`, a dataclass whose fields have defaults or a dict of such, from a JSON object.

    A field that is missing, or whose value is of another type or not finite, keeps its default; a
    list or mapping loses the entries that do not fit. Anything but an object gives the defaults.
    """
    fitting = [copy.deepcopy(values) if isinstance(values, Mapping) else {}]
    while True:
        try:
            text = json.dumps(fitting, ensure_ascii=False).encode("utf-8", "replace")
            result: T = _adapter(kind).validate_json(text)[0]  # type: ignore[arg-type]  # hashable
            return result
        except ValidationError as error:
            for each in reversed(error.errors()):
                *path, last = each["loc"]
                inner: Any = fitting
                for key in path:
                    inner = inner[key]
                del inner[last]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[kind], config=STRICT)
