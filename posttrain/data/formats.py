"""Read rows of common preference datasets as pairs: one function for each `data.format`.

A pair's prompt has the row's own system turn, if it has one: `prompt.system`, where it is not null,
replaces it afterwards, in every format alike.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from eval import Conversation, Prompted
from eval.preference import Pair
from posttrain.base.errors import DataError, given, quoted
from posttrain.data import messages
from posttrain.data.messages import LeftOut, Reply, UnusableRow
from posttrain.data.sources import Row, checked_text
from posttrain.settings import PairColumns

R = TypeVar("R", bound=Prompted)
DIFFERENT_PROMPTS = "the two sides differ before their last reply"
# Columns that trl gives to the template or the model beside the turns.
BESIDE_TURNS = ("tools", "functions", "documents", "chat_template_kwargs", "images", "image")
USERS_REPLY = "the replies are the user's, not the assistant's"
CHOICES = {
    **dict.fromkeys(("a", "model_a", "a_better"), "a"),
    **dict.fromkeys(("b", "model_b", "b_better"), "b"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_equal", "both_good", "both_bad"), "a tie"),
    "idk": "no vote",
}


def read_pair(row: Row, kind: str, columns: PairColumns, system: str | None) -> Pair:
    """The pair in a row of the format `kind`, with the row's own system turn. Conversations are
    compared as they are with `system`, which is `prompt.system`. Raises LeftOut where the row holds
    no pair, a DataError where it is malformed, and an UnusableRow."""
    try:
        check_columns(row, columns)
        pair = FORMATS[kind](row, columns, system)
        # A French Orca set without that column can be read if prompt.system is given.
        lacks = kind == "orca" and system is not None and columns.system not in row.values
        return pair if lacks else with_own_system(pair, row, columns)
    except UnusableRow:
        raise
    except DataError as error:
        if (other := _format_like(row, kind, columns)) is None:
            raise
        raise DataError(f"{error}; data.format={other} reads rows such as this") from None


def _format_like(row: Row, kind: str, columns: PairColumns) -> str | None:
    """Another format that fits a malformed row by the types in its columns."""
    names = (columns.prompt, columns.chosen, columns.rejected)
    types = [type(row.values.get(name)) for name in names]
    if types == [str, str, str]:
        return None if kind in ("columns", "orca", "oasst") else "columns"
    if types[1:] != [list, list]:
        return None
    other = "conversational" if types[0] is list else "messages"
    return None if kind == other else other


def from_columns(row: Row, columns: PairColumns, system: str | None) -> Pair:
    """Text in three columns."""
    prompt = [messages.user_turn(row.text(columns.prompt))]
    return _pair(row, prompt, *_text_replies(row, columns))


def from_messages(row: Row, columns: PairColumns, system: str | None) -> Pair:
    """UltraFeedback: chosen and rejected are conversations that share all but their last turn. If
    they hold no user turn, the text in the prompt column is the user turn."""
    sides = (columns.chosen, columns.rejected)
    prompt, *replies = _conversations(row, sides, None, columns, system)
    if all(turn["role"] != "user" for turn in prompt):
        prompt = [*prompt, messages.user_turn(row.text(columns.prompt))]
    return _pair(row, prompt, *replies)


def from_conversational(row: Row, columns: PairColumns, system: str | None) -> Pair:
    """trl's conversational format: a prompt of one or more turns, and replies of one message."""
    prompt = messages.turns(row, columns.prompt, ignored=columns.ignored)
    replies = []
    for name in (columns.chosen, columns.rejected):
        opening, reply = messages.exchange(row, name, ignored=columns.ignored)
        if opening and reply.text:
            raise DataError(
                f"{row.where}: column '{name}' should hold one message of the assistant, got "
                f"{len(opening) + 1}; data.format=messages reads conversations"
            )
        replies.append(reply)
    return _pair(row, prompt, *replies)


def from_oasst(row: Row, columns: PairColumns, system: str | None) -> Pair:
    """oasst pairs: text, with earlier turns in the prompt as `prompter: ...`, `assistant: ...`."""
    text = row.text(columns.prompt)
    marks = re.split(r"(?:\A|\n)(prompter|assistant): ", text)
    turns = [messages.user_turn(text)]
    if marks[:2] == ["", "prompter"]:
        what = f"{row.where}: column '{columns.prompt}', a turn"
        roles = {"prompter": "user", "assistant": "assistant"}
        turns = [
            {"role": roles[role], "content": checked_text(content, what)}
            for role, content in zip(marks[1::2], marks[2::2], strict=True)
        ]
    if turns[-1]["role"] == "assistant":  # oasst also ranks follow-up questions of users
        raise LeftOut(USERS_REPLY)
    return _pair(row, turns, *_text_replies(row, columns))


def from_comparia(row: Row, columns: PairColumns, system: str | None) -> Pair:
    """Arena votes (compar:IA, LMArena): two conversations and a choice; ties are left out.

    The vote is about the last reply, or about that of turn `columns.turn`. If the conversations
    differ before that reply, the row is left out too: the models did not answer the same prompt.
    In compar:IA's newer set each turn has a row (comparia_turns), which repeats both conversations.
    """
    sides = (columns.first, columns.second)
    if _choice(row, columns.choice) == "b":
        sides = sides[::-1]
    return _pair(row, *_conversations(row, sides, columns.turn, columns, system))


FORMATS: dict[str, Callable[[Row, PairColumns, str | None], Pair]] = {
    "columns": from_columns,
    "orca": from_columns,
    "messages": from_messages,
    "conversational": from_conversational,
    "oasst": from_oasst,
    "comparia": from_comparia,
    "comparia_turns": from_comparia,
}


def _conversations(
    row: Row, names: Sequence[str], until: str | None, columns: PairColumns, system: str | None
) -> tuple[Conversation, Reply, Reply]:
    """The prompt that two conversations share once `system` replaces their system turns, and their
    replies."""
    (prompt, chosen), (other, rejected) = (
        messages.exchange(row, name, until, columns.ignored) for name in names
    )
    if messages.with_system(prompt, system) != messages.with_system(other, system):
        raise LeftOut(DIFFERENT_PROMPTS)
    return prompt, chosen, rejected


def _pair(row: Row, prompt: Conversation, chosen: Reply, rejected: Reply) -> Pair:
    """The pair. Raises an UnusableRow for one that teaches nothing."""
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError(f"{row.where}: the prompt should end in a turn of the user")
    for reply in (chosen, rejected):
        if not reply.text:
            raise UnusableRow(
                f"{row.where}: column '{reply.column}' is empty or ends without a reply",
                messages.EMPTY_REPLY,
            )
    if chosen.text == rejected.text:
        raise UnusableRow(
            f"{row.where}: columns '{chosen.column}' and '{rejected.column}' hold the same text: "
            "such a pair teaches nothing",
            "the replies are equal",
        )
    return Pair(tuple(prompt), chosen.text, rejected.text, where=row.where)


def check_columns(row: Row, columns: PairColumns) -> None:
    """Check that no column holds what trl would show the model and this project does not."""
    for name in BESIDE_TURNS:
        if name not in (columns.ignored or ()) and not messages.is_empty(row.values.get(name)):
            raise UnusableRow(
                f"{row.where}: column '{name}' would be left out of training. If the model should "
                f"not see it, set data.columns.ignored=[{name}]",
                f"column '{name}' is not empty",
            )


def _text_replies(row: Row, columns: PairColumns) -> list[Reply]:
    names = (columns.chosen, columns.rejected)
    return [Reply(name, row.text(name, may_be_empty=True)) for name in names]


def with_own_system(read: R, row: Row, columns: PairColumns) -> R:
    """`read` with the text in `columns.system`, if there is any, as its system turn."""
    column = columns.system
    if column is None or (value := row.value(column)) is None:
        return read
    own = checked_text(value, f"{row.where}: column '{column}'", may_be_empty=True)
    return replace(read, prompt=tuple(messages.with_system(read.prompt, own))) if own else read


def languages(row: Row, column: str) -> list[str]:
    """The row's language, or all that a column `OUTER.INNER` of comparia_turns lists."""
    outer, dot, inner = column.partition(".")
    if not dot or column in row.values:
        return [row.text(column)]
    value = row.value(outer)
    if not isinstance(value, dict) or inner not in value:
        raise DataError(f"{row.where}: there is no column '{inner}' in column '{outer}'")
    listed = value[inner] or []
    if not isinstance(listed, list):
        raise DataError(
            f"{row.where}: column '{column}' should hold a list of languages, got {given(listed)}"
        )
    return listed


def _choice(row: Row, column: str) -> str:
    """`a` or `b`; LeftOut where there is no choice. compar:IA's votes hold the name of a model."""
    value = row.value(column)
    if row.values.get("both_equal") is True:
        raise LeftOut("a tie")
    if value is None or value == "":
        raise LeftOut("no vote")
    text = row.text(column)
    sides = [side for side in ("a", "b") if row.values.get(f"model_{side}_name") == text]
    sides = [CHOICES[text]] if text in CHOICES else sides
    if len(sides) != 1:
        raise DataError(
            f"{row.where}: column '{column}' should hold one of {', '.join(CHOICES)} or the name "
            f"in column 'model_a_name' or 'model_b_name', got {quoted(text)}"
        )
    if sides[0] not in ("a", "b"):
        raise LeftOut(sides[0])
    return sides[0]
