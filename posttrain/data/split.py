"""Set rows aside by a hash of their text, so that the same rows are on the same side everywhere."""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from posttrain.base.errors import DataError
from posttrain.data.text import normalise

T = TypeVar("T")


@functools.lru_cache(maxsize=200_000)  # read for the held-out rows, then for validation
def text_key(text: str) -> str:
    """A hash of a text without its case, punctuation and spacing, the same on every machine."""
    return hashlib.sha256(normalise(text).encode("utf-8")).hexdigest()


def set_aside(
    rows: Sequence[T], keys: Sequence[str], count: int, where: str, setting: str
) -> tuple[list[T], list[T]]:
    """The rows that stay, and at least `count` rows set aside: those with the smallest keys.

    Rows of the same key stay together. Rows added to the dataset move few of the others.

    Raises:
        DataError: none would stay; names `where` they come from and the `setting` to lower.
    """
    chosen: set[str] = set()
    aside = 0
    by_key = Counter(keys)
    for key in sorted(by_key):
        if aside >= count:
            break
        chosen.add(key)
        aside += by_key[key]
    kept = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    if not kept:
        raise DataError(
            f"{where}: {len(rows)} rows leave none to train on after {count} are set aside; lower "
            f"{setting}"
        )
    return kept, [row for row, key in zip(rows, keys, strict=True) if key in chosen]
