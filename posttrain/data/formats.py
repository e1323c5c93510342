"""Read rows of common preference datasets as pairs: one function for each `data.format`.

Each returns a Pair, or a few words that say why it leaves the row out. A malformed row stops the
run; the message names its file, row and column.
"""

import re
from collections.abc import Callable

from eval import Conversation, PromptFormat, conversation
from eval.preference import Pair
from posttrain.base.errors import DataError, quoted
from posttrain.base.expected import given
from posttrain.data import messages
from posttrain.data.messages import Reply
from posttrain.data.sources import Row, checked_text
from posttrain.settings import PairData

DIFFERENT_PROMPTS = "the two sides differ before their last reply"
NOTHING_TO_LEARN = "such a pair teaches nothing; remove it, or set data.unusable=drop to drop all"
EMPTY_REPLY = "a reply is empty"
USERS_REPLY = "the replies are the user's, not the assistant's"
CHOICES = {
    **dict.fromkeys(("a", "model_a", "a_better"), "a"),
    **dict.fromkeys(("b", "model_b", "b_better"), "b"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_equal", "both_good", "both_bad"), "a tie"),
    "idk": "no vote",
}


def read_pair(row: Row, data: PairData, system: str | None) -> Pair | str:
    """The row's pair, or why the row is left out. `system` is `prompt.system`.

    Raises:
        DataError: the row is malformed, or teaches nothing while `data.unusable` is "error".
    """
    if data.language is not None and data.language not in _languages(row, data.columns.language):
        return f"not in '{data.language}'"
    return FORMATS[data.format](row, data, system)


def from_columns(row: Row, data: PairData, system: str | None) -> Pair | str:
    """Text in three columns. The row's own system turn replaces `prompt.system`."""
    columns = data.columns
    if columns.system is not None:
        system = _own_system(row, columns.system) or system
    prompt = conversation(row.text(columns.prompt), PromptFormat(system))
    return _pair(row, data, prompt, *_text_replies(row, data))


def from_orca(row: Row, data: PairData, system: str | None) -> Pair | str:
    """The French Orca sets. Their system turn is used only if `prompt.system` is null."""
    columns = data.columns
    if system is None and columns.system is not None:
        system = _own_system(row, columns.system)
    prompt = conversation(row.text(columns.prompt), PromptFormat(system))
    return _pair(row, data, prompt, *_text_replies(row, data))


def from_messages(row: Row, data: PairData, system: str | None) -> Pair | str:
    """UltraFeedback: chosen and rejected are conversations that share all but their last turn.

    If they hold no user turn, the text in the prompt column is the user turn.
    """
    chosen, rejected = (
        messages.exchange(messages.turns(row, name), name)
        for name in (data.columns.chosen, data.columns.rejected)
    )
    openings = [messages.with_system(opening, system) for opening, _ in (chosen, rejected)]
    if openings[0] != openings[1]:
        return DIFFERENT_PROMPTS
    prompt = openings[0]
    if all(turn["role"] != "user" for turn in prompt):
        prompt = [*prompt, {"role": "user", "content": row.text(data.columns.prompt)}]
    return _pair(row, data, prompt, chosen[1], rejected[1])


def from_conversational(row: Row, data: PairData, system: str | None) -> Pair | str:
    """trl's conversational format: a prompt of one or more turns, and replies of one message."""
    columns = data.columns
    prompt = messages.with_system(messages.turns(row, columns.prompt), system)
    replies = []
    for name in (columns.chosen, columns.rejected):
        opening, reply = messages.exchange(messages.turns(row, name), name)
        if opening and reply.text:
            raise DataError(
                f"{row.where}: column '{name}' should hold one message of the assistant, found "
                f"{len(opening) + 1}; data.format=messages reads whole conversations"
            )
        replies.append(reply)
    return _pair(row, data, prompt, *replies)


def from_oasst(row: Row, data: PairData, system: str | None) -> Pair | str:
    """oasst pairs: text, with earlier turns in the prompt as `prompter: ...`, `assistant: ...`."""
    text = row.text(data.columns.prompt)
    marks = re.split(r"(?:\A|\n)(prompter|assistant): ", text)
    turns = [{"role": "user", "content": text}]
    if marks[:2] == ["", "prompter"]:
        what = f"{row.where}: column '{data.columns.prompt}', a turn"
        turns = [
            {
                "role": "user" if role == "prompter" else "assistant",
                "content": checked_text(content, what),
            }
            for role, content in zip(marks[1::2], marks[2::2], strict=True)
        ]
    if turns[-1]["role"] == "assistant":  # oasst also ranks follow-up questions of users
        return USERS_REPLY
    return _pair(row, data, messages.with_system(turns, system), *_text_replies(row, data))


def from_comparia(row: Row, data: PairData, system: str | None) -> Pair | str:
    """Arena votes (compar:IA, LMArena): two conversations and a choice; ties are left out.

    The vote is about the last reply, or about that of turn `columns.turn`. If the conversations
    differ before that reply, the row is left out too: the models did not answer the same prompt.
    In compar:IA's newer set each turn has a row (comparia_turns), which repeats both conversations.
    """
    columns = data.columns
    side = _choice(row, columns.choice)
    if side not in ("a", "b"):
        return side
    names = [columns.first, columns.second]
    if side == "b":
        names.reverse()
    drop = data.unusable == "drop"
    conversations = [messages.turns(row, name, columns.turn, drop) for name in names]
    if drop and not all(turn["content"] for turns in conversations for turn in turns):
        return EMPTY_REPLY
    chosen, rejected = map(messages.exchange, conversations, names)
    openings = [messages.with_system(opening, system) for opening, _ in (chosen, rejected)]
    if openings[0] != openings[1]:
        return DIFFERENT_PROMPTS
    return _pair(row, data, openings[0], chosen[1], rejected[1])


FORMATS: dict[str, Callable[[Row, PairData, str | None], Pair | str]] = {
    "columns": from_columns,
    "orca": from_orca,
    "messages": from_messages,
    "conversational": from_conversational,
    "oasst": from_oasst,
    "comparia": from_comparia,
    "comparia_turns": from_comparia,
}


def _pair(
    row: Row, data: PairData, prompt: Conversation, chosen: Reply, rejected: Reply
) -> Pair | str:
    """The pair, or why it is left out. Raises a DataError for a malformed or useless row."""
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError(f"{row.where}: the prompt should end in a turn of the user")
    for reply in (chosen, rejected):
        if not reply.text:
            if data.unusable == "drop":
                return EMPTY_REPLY
            raise DataError(
                f"{row.where}: column '{reply.column}' is empty or ends without a reply; "
                + NOTHING_TO_LEARN
            )
    if chosen.text == rejected.text:
        if data.unusable == "drop":
            return "the replies are equal"
        raise DataError(
            f"{row.where}: columns '{chosen.column}' and '{rejected.column}' hold the same text; "
            + NOTHING_TO_LEARN
        )
    return Pair(tuple(prompt), chosen.text, rejected.text, row.where)


def _text_replies(row: Row, data: PairData) -> tuple[Reply, Reply]:
    chosen, rejected = data.columns.chosen, data.columns.rejected
    return (
        Reply(chosen, row.text(chosen, may_be_empty=True)),
        Reply(rejected, row.text(rejected, may_be_empty=True)),
    )


def _own_system(row: Row, column: str) -> str | None:
    """The row's own system turn, None where it is null or empty."""
    value = row.value(column)
    if value is None:
        return None
    return checked_text(value, f"{row.where}: column '{column}'", may_be_empty=True) or None


def _languages(row: Row, column: str) -> list[str]:
    """The row's language, or all of them where a column `OUTER.INNER` of comparia_turns lists
    several; null there is none."""
    outer, dot, inner = column.partition(".")
    if not dot or column in row.values:
        return [row.text(column)]
    value = row.value(outer)
    if not isinstance(value, dict) or inner not in value:
        raise DataError(f"{row.where}: there is no column '{inner}' in column '{outer}'")
    listed = value[inner] or []
    if not isinstance(listed, list):
        raise DataError(
            f"{row.where}: column '{column}' should hold a list of languages, found {given(listed)}"
        )
    return listed


def _choice(row: Row, column: str) -> str:
    """`a` or `b`, or why there is no choice. compar:IA's votes hold the name of a model."""
    value = row.value(column)
    if row.values.get("both_equal") is True:
        return "a tie"
    if value is None or value == "":
        return "no vote"
    text = row.text(column)
    if text in CHOICES:
        return CHOICES[text]
    sides = [side for side in ("a", "b") if row.values.get(f"model_{side}_name") == text]
    if len(sides) != 1:
        raise DataError(
            f"{row.where}: column '{column}' should hold one of {', '.join(CHOICES)} or the name "
            f"in column 'model_a_name' or 'model_b_name', found {quoted(text)}"
        )
    return sides[0]
