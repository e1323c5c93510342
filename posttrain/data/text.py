"""Texts compared: what makes two of them the same."""

import re
import unicodedata


def normalise(text: str) -> str:
    """Text without case, punctuation or spacing, so that trivial edits do not hide a copy.

    What stands between two digits stays: 3 + 5 is not 3 - 5, nor 1.5 the same as 15.
    """
    dense = "".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"(?<![0-9])[\W_]|[\W_](?![0-9])", "", dense) or dense
