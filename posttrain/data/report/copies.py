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
BLOCK = 500  # texts that are read at once
AT_ONCE = 2_000_000  # pairs of texts that are compared at once: some 200 MB
NUMBERS = 2**20  # character sequences get a number below this
RUN = 13  # words in a row that mean a copied question (https://arxiv.org/abs/2005.14165, C.1)
NEAR_RULE = (
    f"at least {ALIKE:.0%} of the {SHINGLE}-character sequences in common, without case, "
    "punctuation or spacing"
)
OVERLAP_RULE = f"{RUN} words in a row, or the full text, in common with a question"


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
    ALIKE. All are detected, though few are compared: two that are so alike have some of the
    rarest sequences of each, its head, in common ("Efficient Similarity Joins for Near Duplicate
    Detection", 2008, https://doi.org/10.1145/1367497.1367516, sections 2.3 and 3).
    """
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(text, index)
    different = list(first)
    copied = _first_alike(different) if different else []
    index_of = {text: first[different[of]] for text, of in zip(different, copied, strict=True)}
    return [index_of[text] for text in texts]


def _first_alike(texts: Sequence[str]) -> list[int]:
    """near_copies() of texts that all differ."""
    import numpy as np
    from scipy.sparse import csr_array

    numbers, starts = _rarest_first(texts)
    sizes = np.diff(starts)
    lengths = ((1 - ALIKE) * sizes).astype(np.int32) + 1  # of the heads
    tails, ends = sizes - lengths, numbers[starts[:-1] + lengths - 1]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    inside_heads = np.arange(bounds[-1]) + np.repeat(starts[:-1] - bounds[:-1], lengths)
    ones = np.ones(bounds[-1], dtype=np.int32)
    heads = csr_array((ones, numbers[inside_heads], bounds), shape=(len(texts), NUMBERS))
    holders = heads.T.tocsr()
    rows = np.split(numbers, starts[1:-1])
    signatures = _signatures(numbers, sizes)
    inside = np.zeros(NUMBERS, dtype=bool)
    copied = list(range(len(texts)))
    step = max(1, AT_ONCE // len(texts))
    for start in range(0, len(texts), step):
        shared = heads[start : start + step] @ holders
        text = np.repeat(np.arange(start, start + shared.shape[0]), np.diff(shared.indptr))
        other, in_heads = shared.indices, shared.data
        earlier = other < text
        text, other, in_heads = text[earlier], other[earlier], in_heads[earlier]
        # At most this is in common: what the heads share, and all of the tail of the text whose
        # head ends first.
        most = in_heads + np.where(ends[text] <= ends[other], tails[text], tails[other])
        likely = most >= ALIKE * (sizes[text] + sizes[other] - most)
        text, other = text[likely], other[likely]
        # Each sequence that one text alone has changes at most one bit of its signature.
        bits = np.bitwise_count(signatures[text] ^ signatures[other]).sum(axis=1)
        likely = bits * (1 + ALIKE) <= (sizes[text] + sizes[other]) * (1 - ALIKE) + 1e-6
        text, other = text[likely], other[likely]
        order = np.lexsort((other, text))
        loaded = -1  # the text whose sequences are in `inside`
        for one, two in zip(text[order].tolist(), other[order].tolist(), strict=True):
            if copied[one] != one:
                continue
            if loaded != one:
                inside[rows[loaded]] = False
                inside[rows[one]] = True
                loaded = one
            both = np.count_nonzero(inside[rows[two]])
            if both >= ALIKE * (len(rows[one]) + len(rows[two]) - both):
                copied[one] = two
        inside[rows[loaded]] = False
    return copied


def _signatures(
    numbers: "npt.NDArray[np.int64]", sizes: "npt.NDArray[np.int32]"
) -> "npt.NDArray[np.uint64]":
    """512 bits of each text, as (texts, 8): those of its numbers modulo 512 are 1."""
    import numpy as np

    bits = np.zeros((sizes.size, 512), dtype=bool)
    bits[np.repeat(np.arange(sizes.size), sizes), numbers % 512] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _rarest_first(
    texts: Sequence[str],
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """The ranks of each text's sequences in ascending order, text after text, and where each text
    starts, with the end of the last. The fewer texts hold a sequence, the lower its rank."""
    import numpy as np

    blocks = []
    texts_with = np.zeros(NUMBERS, dtype=np.int64)
    for start in range(0, len(texts), BLOCK):
        keys = np.sort(_sequences(texts[start : start + BLOCK]))
        blocks.append(keys[np.append(True, keys[1:] != keys[:-1])])  # each once
        texts_with += np.bincount(blocks[-1] % NUMBERS, minlength=NUMBERS)
    rank = np.empty(NUMBERS, dtype=np.int64)
    rank[np.argsort(texts_with, kind="stable")] = np.arange(NUMBERS)
    ranks, sizes = [], []
    for block in blocks:
        owners = block // NUMBERS
        ranks.append(np.sort(owners * NUMBERS + rank[block % NUMBERS]) % NUMBERS)
        sizes.append(np.bincount(owners))
    return np.concatenate(ranks), np.concatenate([[0], np.cumsum(np.concatenate(sizes))])


def _sequences(texts: Sequence[str]) -> "npt.NDArray[np.int64]":
    """`index of the text * NUMBERS + number` of the character sequences of each text, the same on
    every machine. A text shorter than a sequence has one."""
    import numpy as np

    read = [text[:READ].ljust(SHINGLE, "\0") for text in texts]
    codes = np.frombuffer("".join(read).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    values = np.zeros(codes.size - SHINGLE + 1, dtype=np.uint64)
    for offset in range(SHINGLE):
        values = (
            values * np.uint64(0x100000001B3) + codes[offset : codes.size - SHINGLE + 1 + offset]
        )
    sizes = np.array([len(text) for text in read])
    owners = np.repeat(np.arange(len(read)), sizes)
    inside = owners[: values.size] == owners[SHINGLE - 1 :]  # not of the end of one and the next
    # The product's upper bits depend on all bits of a value (Fibonacci hashing).
    numbers = (values[inside] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(44)).astype(np.int64)
    keys: npt.NDArray[np.int64] = owners[: values.size][inside] * NUMBERS + numbers
    return keys


def holds_question(texts: Sequence[str], questions: Sequence[str]) -> list[bool]:
    """True for each text that repeats a question or RUN of its words in a row."""
    full = {normalise(question) for question in questions}
    runs = {run for question in questions for run in _runs(question)}
    return [normalise(text) in full or any(run in runs for run in _runs(text)) for text in texts]


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
