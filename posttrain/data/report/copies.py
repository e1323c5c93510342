"""Find texts that repeat another one, exactly or nearly, or contain an evaluation question."""

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.data.text import normalise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SHINGLE = 5  # characters
ALIKE = 0.7  # share of their character sequences that two near copies have in common
READ = 4_000  # characters of a text that are read
NUMBERS = 2**20  # character sequences are told apart by a number below this
RUN = 13  # words in a row that mean a copied question (https://arxiv.org/abs/2005.14165, C.1)
NEAR_RULE = (
    f"at least {ALIKE:.0%} of the {SHINGLE}-character sequences in common, without case, "
    "punctuation or spacing"
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
    """For each normalised text, the index of the first one that it nearly copies, or its own index.

    Two texts are near copies where the Jaccard similarity of their character sequences is at least
    ALIKE. Every such text is found, though few are compared: two that are so alike have some of the
    rarest sequences of each, its head, in common ("Efficient Similarity Joins for Near Duplicate
    Detection", 2008, https://doi.org/10.1145/1367497.1367516, sections 2.3 and 3).
    """
    import numpy as np

    if not texts:
        return []
    rows, ranks = _rarest_first(texts)
    sizes = np.array([row.size for row in rows])
    heads = [row[: int((1 - ALIKE) * row.size) + 1] for row in rows]
    tails = sizes - [head.size for head in heads]
    ends = np.array([ranks[head[-1]] for head in heads])
    holders, starts = _index(heads)
    stops = starts.copy()  # of the texts so far
    inside = np.zeros(NUMBERS, dtype=bool)
    places = list(range(len(rows)))
    for place, (row, head) in enumerate(zip(rows, heads, strict=True)):
        spans = zip(starts[head].tolist(), stops[head].tolist(), strict=True)
        shared = np.bincount(np.concatenate([holders[start:stop] for start, stop in spans]))
        others = np.flatnonzero(shared)
        # At most this is in common: what the heads share, and all of the tail of the text whose
        # head ends first.
        most = shared[others] + np.where(ends[place] <= ends[others], tails[place], tails[others])
        inside[row] = True
        for other in others[most >= ALIKE * (sizes[place] + sizes[others] - most)].tolist():
            both = np.count_nonzero(inside[rows[other]])
            if both >= ALIKE * (sizes[place] + sizes[other] - both):
                places[place] = other
                break
        inside[row] = False
        stops[head] += 1
    return places


def _index(
    heads: "Sequence[npt.NDArray[np.int64]]",
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """The places of the heads with number 0, then of those with 1, and so on; where each begins."""
    import numpy as np

    numbers = np.concatenate(heads)
    owners = np.repeat(np.arange(len(heads)), [head.size for head in heads])
    many = np.bincount(numbers, minlength=NUMBERS)
    return owners[np.argsort(numbers, kind="stable")], np.cumsum(many) - many


def _rarest_first(
    texts: Sequence[str],
) -> "tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.int64]]":
    """The numbers of each text's sequences, in the order of their ranks, and the rank of each
    number: the fewer texts hold it, the lower."""
    import numpy as np

    rows = [_sequences(text) for text in texts]
    in_texts = np.bincount(np.concatenate(rows), minlength=NUMBERS)
    ranks = in_texts * NUMBERS + np.arange(NUMBERS)
    return [row[np.argsort(ranks[row])] for row in rows], ranks


def _sequences(text: str) -> "npt.NDArray[np.int64]":
    """The numbers of the text's character sequences, each once, the same on every machine."""
    import numpy as np

    read = text[:READ] or " "  # so that there is one sequence
    codes = np.frombuffer(read.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    width = min(SHINGLE, codes.size)
    values = np.zeros(codes.size - width + 1, dtype=np.uint64)
    for offset in range(width):
        values = values * np.uint64(0x100000001B3) + codes[offset : codes.size - width + 1 + offset]
    return np.unique(_mixed(values) % np.uint64(NUMBERS)).astype(np.int64)


def _mixed(values: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.uint64]":
    """Mix each bit of a value into all bits (the finaliser of MurmurHash3, modulo 2^64)."""
    import numpy as np

    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(33))) * factor
    return values ^ (values >> np.uint64(33))


def holds_question(texts: Sequence[str], questions: Sequence[str]) -> list[bool]:
    """True for each text that repeats a question or RUN of its words in a row."""
    whole = {normalise(question) for question in questions}
    runs = {run for question in questions for run in _runs(question)}
    return [normalise(text) in whole or any(run in runs for run in _runs(text)) for text in texts]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
