"""Find texts that repeat another one, exactly or nearly, or contain an evaluation question.

The time is linear in the number of texts: not every text is compared with every other.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.data.text import normalise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SHINGLE = 5  # characters
SKETCH = 32  # hashes kept of a text
ALIKE = 0.7  # share of them that two near copies have in common
READ = 4_000  # characters of a text that are read
RUN = 13  # words in a row that mean a copied question (https://arxiv.org/abs/2005.14165, C.1)
NEAR_RULE = (
    f"at least {ALIKE:.0%} of the {SHINGLE}-character sequences in common, estimated from the "
    f"{SKETCH} smallest hashes, without case, punctuation or spacing"
)
OVERLAP_RULE = f"{RUN} words in a row, or the whole text, in common with a question"


def repeats(keys: Sequence[object]) -> list[bool]:
    """True for each key that is in the list before."""
    seen: set[object] = set()
    repeated = []
    for key in keys:
        repeated.append(key in seen)
        seen.add(key)
    return repeated


def near_copies(texts: Sequence[str]) -> list[int]:
    """For each normalised text, the index of the one that it nearly copies, or its own index.

    The Jaccard similarity of their character sequences is estimated from bottom-k sketches (Cohen
    and Kaplan, 2007, https://doi.org/10.1145/1281100.1281133). Each text is compared with one other
    only: among the first texts with each of its hashes, the one that has most of them.
    """
    first_with: dict[int, int] = {}
    sketches: dict[int, list[int]] = {}
    places = []
    for place, text in enumerate(texts):
        sketch = _sketch(text)
        shared = Counter(first_with[value] for value in sketch if value in first_with)
        nearest = max(shared, key=lambda other: (shared[other], -other), default=place)
        if nearest == place or _similarity(sketch, sketches[nearest]) < ALIKE:
            nearest = place
            sketches[place] = sketch
            for value in sketch:
                first_with.setdefault(value, place)
        places.append(nearest)
    return places


def _sketch(text: str) -> list[int]:
    """The smallest SKETCH hashes of the text's character sequences, the same on every machine."""
    import numpy as np

    codes = np.frombuffer(text[:READ].encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if codes.size == 0:
        return []
    width = min(SHINGLE, codes.size)
    values = np.zeros(codes.size - width + 1, dtype=np.uint64)
    for offset in range(width):
        values = values * np.uint64(0x100000001B3) + codes[offset : codes.size - width + 1 + offset]
    smallest: list[int] = np.unique(_mixed(values))[:SKETCH].tolist()
    return smallest


def _mixed(values: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.uint64]":
    """Mix each bit of a value into all bits (the finaliser of MurmurHash3, modulo 2^64)."""
    import numpy as np

    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(33))) * factor
    return values ^ (values >> np.uint64(33))


def _similarity(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of the smallest hashes of both texts that are in both."""
    both = set(one) & set(other)
    smallest = sorted({*one, *other})[:SKETCH]
    return sum(value in both for value in smallest) / len(smallest)


def holds_question(texts: Sequence[str], questions: Sequence[str]) -> list[bool]:
    """True for each text that repeats a question or RUN of its words in a row."""
    whole = {normalise(question) for question in questions}
    runs = {run for question in questions for run in _runs(question)}
    return [normalise(text) in whole or any(run in runs for run in _runs(text)) for text in texts]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
