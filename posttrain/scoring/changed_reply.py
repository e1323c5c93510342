"""One prompt with the reply before and the reply after, for the terminal."""

import textwrap
from collections.abc import Sequence

from eval import MeasuredReply
from eval.preference import Pair
from posttrain.base.terminal import prose_width

LINES = 8  # of a reply


def example(
    pairs: Sequence[Pair], before: Sequence[MeasuredReply], after: Sequence[MeasuredReply]
) -> str:
    """The first prompt whose reply changed its language, else the first whose reply changed."""
    rows = list(zip(pairs, before, after, strict=False))  # replies are to the first pairs only
    if not rows:
        return "No replies were generated (evaluation.replies is 0)."
    changed = [row for row in rows if row[1].text != row[2].text]
    if not changed:
        return f"All {len(rows)} replies are the same before and after."
    other_language = [row for row in changed if row[1].in_language != row[2].in_language]
    pair, first, second = (other_language or changed)[0]
    in_language = f", {len(other_language)} of them in language" if other_language else ""
    head = f"{len(changed)} of {len(rows)} replies changed{in_language}; the first of those:"
    parts = [textwrap.fill(head, prose_width()), _short(pair.prompt[-1]["content"])]
    for side, reply in (("before", first), ("after", second)):
        cut = "" if reply.ended else ", cut at the limit"
        parts.append(f"{side} (tokens: {reply.tokens}{cut}):\n{_short(reply.text)}")
    return "\n\n".join(parts)


def _short(text: str) -> str:
    """The text in at most LINES lines that fit the terminal, with what is left out marked."""
    visible = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    lines = [
        part
        for line in visible.strip().split("\n")
        for part in textwrap.wrap(line, prose_width()) or [""]
    ]
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "[...]"])
