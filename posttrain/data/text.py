"""Compare texts without regard to case, punctuation and spacing."""

import re
import unicodedata


def normalise(text: str) -> str:
    """The text without case, punctuation or spacing, so that small edits do not hide a copy.

    Characters between two digits are kept: 3 + 5 is not 3 - 5, and 1.5 is not 15.
    """
    dense = "".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"(?<![0-9])[\W_]|[\W_](?![0-9])", "", dense) or dense
