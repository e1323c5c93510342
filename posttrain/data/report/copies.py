"""Find texts that repeat another one, exactly or nearly, or contain an evaluation question."""

import itertools
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
BLOCK = 200  # texts that are compared with all others at once
RUN = 13  # words in a row that mean a copied question (https://arxiv.org/abs/2005.14165, C.1)
NEAR_RULE = (
    f"at least {ALIKE:.0%} of the {SHINGLE}-character sequences in common, without case, "
    "punctuation or spacing"
)
OVERLAP_RULE = f"{RUN} words in a row, or the full text, in common with a question"


def near_copies(texts: Sequence[str]) -> list[int]:
    """For each normalised text, the index of the first one that it nearly copies, or its own index.

    Two texts are near copies where the Jaccard similarity of their character sequences is at least
    ALIKE. All are detected, though few are compared: two that are so alike have some of the
    rarest sequences of each, its head, in common ("Efficient Similarity Joins for Near Duplicate
    Detection", 2008, https://doi.org/10.1145/1367497.1367516, sections 2.3 and 3).
    """
    import numpy as np
    from scipy.sparse import csr_array

    if not texts:
        return []
    rows, count = _rarest_first(texts)
    sizes = np.array([row.size for row in rows])
    lengths = ((1 - ALIKE) * sizes).astype(np.int64) + 1
    tails = sizes - lengths
    head_of = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    ends = np.array([head[-1] for head in head_of])
    in_heads, bounds = np.concatenate(head_of), np.concatenate([[0], np.cumsum(lengths)])
    ones = np.ones(in_heads.size, dtype=np.int32)
    heads = csr_array((ones, in_heads, bounds), shape=(len(texts), count))
    holders = heads.T.tocsr()
    inside = np.zeros(count, dtype=bool)
    copied = list(range(len(texts)))
    for start in range(0, len(texts), BLOCK):
        shared = heads[start : start + BLOCK] @ holders
        for one, (low, high) in enumerate(itertools.pairwise(shared.indptr), start):
            others, both = shared.indices[low:high], shared.data[low:high]
            others, both = others[others < one], both[others < one]
            # At most this is in common: what the heads share, and all of the tail of the text
            # whose head ends first.
            most = both + np.where(ends[one] <= ends[others], tails[one], tails[others])
            likely = others[most >= ALIKE * (sizes[one] + sizes[others] - most)]
            inside[rows[one]] = True
            for other in np.sort(likely).tolist():
                common = np.count_nonzero(inside[rows[other]])
                if common >= ALIKE * (sizes[one] + sizes[other] - common):
                    copied[one] = other
                    break
            inside[rows[one]] = False
    return copied


def _rarest_first(texts: Sequence[str]) -> "tuple[list[npt.NDArray[np.int32]], int]":
    """The ranks of each text's character sequences in ascending order, and how many ranks there
    are. The fewer texts hold a sequence, the lower its rank."""
    import numpy as np

    numbers: dict[str, int] = {}
    rows = []
    for text in texts:
        read = text[:READ].ljust(SHINGLE)  # a text shorter than a sequence has one
        sequences = {read[start : start + SHINGLE] for start in range(len(read) - SHINGLE + 1)}
        known = [numbers.setdefault(sequence, len(numbers)) for sequence in sequences]
        rows.append(np.array(known, dtype=np.int32))
    rank = np.empty(len(numbers), dtype=np.int32)
    rank[np.argsort(np.bincount(np.concatenate(rows)))] = np.arange(len(numbers))
    return [np.sort(rank[row]) for row in rows], len(numbers)


def holds_question(texts: Sequence[str], questions: Sequence[str]) -> list[bool]:
    """True for each text that repeats a question or RUN of its words in a row."""
    full = {normalise(question) for question in questions}
    runs = {run for question in questions for run in _runs(question)}
    return [normalise(text) in full or any(run in runs for run in _runs(text)) for text in texts]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
