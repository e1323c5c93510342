"""One prompt with the reply before and the reply after, for the terminal."""

import textwrap
from collections.abc import Sequence

from eval.preference import Pair
from eval.replies import MeasuredReply
from posttrain.base.terminal import prose_width

LINES = 8  # of a reply
GAP = " | "


def example(
    pairs: Sequence[Pair], before: Sequence[MeasuredReply], after: Sequence[MeasuredReply]
) -> str:
    """The first prompt whose reply changed its language, else the first whose reply changed.

    In lines that fit the terminal.
    """
    rows = list(zip(pairs, before, after, strict=False))  # only the first pairs were answered
    if not rows:
        return "No replies were asked for (evaluation.replies is 0)."
    changed = [row for row in rows if row[1].text != row[2].text]
    if not changed:
        return f"All {len(rows)} replies are the same before and after."
    other_language = [row for row in changed if row[1].in_language != row[2].in_language]
    pair, first, second = (other_language or changed)[0]
    whole = prose_width()
    width = (whole - len(GAP)) // 2
    head = f"{len(changed)} of {len(rows)} replies changed; the first of them:"
    if other_language:
        head = (
            f"{len(changed)} of {len(rows)} replies changed, {len(other_language)} of them in "
            "language; the first of those:"
        )
    columns = [
        [f"before ({_facts(first)})", "-" * width, *_lines(first.text, width, LINES)],
        [f"after ({_facts(second)})", "-" * width, *_lines(second.text, width, LINES)],
    ]
    height = max(map(len, columns))
    left, right = ([*column, *[""] * (height - len(column))] for column in columns)
    body = [f"{a:<{width}}{GAP}{b}".rstrip() for a, b in zip(left, right, strict=True)]
    prompt = _lines(pair.prompt[-1]["content"], whole, LINES // 2)
    return "\n".join([textwrap.fill(head, whole), "", *prompt, "", *body])


def _facts(reply: MeasuredReply) -> str:
    return ("1 token" if reply.tokens == 1 else f"{reply.tokens} tokens") + (
        "" if reply.ended else ", cut at the limit"
    )


def _lines(text: str, width: int, most: int) -> list[str]:
    """The text in at most `most` lines, its own line breaks kept, with what is left out marked."""
    visible = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    wrapped = [
        part for line in visible.strip().split("\n") for part in textwrap.wrap(line, width) or [""]
    ]
    return wrapped if len(wrapped) <= most else [*wrapped[: most - 1], "[...]"]
