"""Compare texts without regard to case, punctuation and spacing."""

import re
import unicodedata

BEGINNING = 100  # characters
# The set comes first, which the re module can search for: three times as fast.
_DROPPED = re.compile(r"(?s)[\W_](?:(?<![0-9].)|(?![0-9]))")


def normalise(text: str) -> str:
    """The text without case, punctuation or spacing, so that small edits do not hide a copy.

    Characters between two digits are kept: 3 + 5 is not 3 - 5, and 1.5 is not 15.
    """
    dense = "".join(unicodedata.normalize("NFC", text).casefold().split())
    return _DROPPED.sub("", dense) or dense


def same(one: str, other: str) -> bool:
    """Whether normalise() makes the two texts equal. Where their beginnings already differ, no more
    of them is read."""
    starts = [normalise(text[:BEGINNING].rpartition(" ")[0]) for text in (one, other)]
    if all(start[:1].isalnum() for start in starts):
        short, long = sorted(starts, key=len)
        if not long.startswith(short):
            return False
    return normalise(one) == normalise(other)
