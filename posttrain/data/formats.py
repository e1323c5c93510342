"""Read rows of common preference datasets as pairs: one function for each `data.format`.

Each returns a Pair, or a reason for leaving the row out. A malformed row stops the
run; the message names its file, row and column. A pair's prompt has the row's own system turn, if
it has one: `prompt.system`, where it is not null, replaces it afterwards, in every format alike.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from eval import Conversation, PromptFormat, conversation
from eval.demonstration import Demonstration
from eval.preference import Pair
from posttrain.base.errors import DataError, quoted
from posttrain.base.expected import given
from posttrain.data import messages
from posttrain.data.messages import Reply, UnusableRow
from posttrain.data.sources import Row, checked_text
from posttrain.settings import PairData, ReplyData

R = TypeVar("R", Pair, Demonstration)
DIFFERENT_PROMPTS = "the two sides differ before their last reply"
NOTHING_TO_LEARN = "such a pair teaches nothing"
# Columns that trl gives to the template or the model beside the turns.
BESIDE_TURNS = ("tools", "functions", "documents", "chat_template_kwargs", "images", "image")
USERS_REPLY = "the replies are the user's, not the assistant's"
CHOICES = {
    **dict.fromkeys(("a", "model_a", "a_better"), "a"),
    **dict.fromkeys(("b", "model_b", "b_better"), "b"),
    **dict.fromkeys(("tie", "tie (bothbad)", "both_equal", "both_good", "both_bad"), "a tie"),
    "idk": "no vote",
}


def read_pair(row: Row, data: PairData, system: str | None) -> Pair | str:
    """The row's pair, or why the row is left out.

    Conversations are compared as they are with `system`, which is `prompt.system`; the pair keeps
    the row's own system turn.

    Raises:
        DataError: the row is malformed, or unusable while `data.unusable` is "error".
    """
    if data.language is not None and data.language not in _languages(row, data.columns.language):
        return f"not in '{data.language}'"
    try:
        check_columns(row, data)
        pair = FORMATS[data.format](row, data, system)
        return pair if isinstance(pair, str) else with_own_system(pair, row, data, system)
    except UnusableRow as error:
        if data.unusable == "drop":
            return error.why
        raise
    except DataError as error:
        if (other := _format_like(row, data)) is None:
            raise
        raise DataError(f"{error}; data.format={other} reads rows such as this") from None


def _format_like(row: Row, data: PairData) -> str | None:
    """Another format that fits a malformed row by the types in its columns."""
    names = (data.columns.prompt, data.columns.chosen, data.columns.rejected)
    kinds = [type(row.values.get(name)) for name in names]
    if kinds == [str, str, str]:
        return None if data.format in ("columns", "orca", "oasst") else "columns"
    if kinds[1:] != [list, list]:
        return None
    other = "conversational" if kinds[0] is list else "messages"
    return None if data.format == other else other


def from_columns(row: Row, data: PairData, system: str | None) -> Pair | str:
    """Text in three columns."""
    prompt = conversation(row.text(data.columns.prompt), PromptFormat())
    return _pair(row, data, prompt, *_text_replies(row, data))


def from_messages(row: Row, data: PairData, system: str | None) -> Pair | str:
    """UltraFeedback: chosen and rejected are conversations that share all but their last turn.

    If they hold no user turn, the text in the prompt column is the user turn.
    """
    chosen, rejected = (
        messages.exchange(messages.turns(row, name, ignored=data.columns.ignored), name)
        for name in (data.columns.chosen, data.columns.rejected)
    )
    prompt = chosen[0]
    if not _alike(prompt, rejected[0], system):
        return DIFFERENT_PROMPTS
    if all(turn["role"] != "user" for turn in prompt):
        prompt = [*prompt, {"role": "user", "content": row.text(data.columns.prompt)}]
    return _pair(row, data, prompt, chosen[1], rejected[1])


def from_conversational(row: Row, data: PairData, system: str | None) -> Pair | str:
    """trl's conversational format: a prompt of one or more turns, and replies of one message."""
    columns = data.columns
    prompt = messages.turns(row, columns.prompt, ignored=columns.ignored)
    replies = []
    for name in (columns.chosen, columns.rejected):
        turns = messages.turns(row, name, ignored=columns.ignored)
        opening, reply = messages.exchange(turns, name)
        if opening and reply.text:
            raise DataError(
                f"{row.where}: column '{name}' should hold one message of the assistant, got "
                f"{len(opening) + 1}; data.format=messages reads conversations"
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
    return _pair(row, data, turns, *_text_replies(row, data))


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
    chosen, rejected = (
        messages.exchange(messages.turns(row, name, columns.turn, columns.ignored), name)
        for name in names
    )
    if not _alike(chosen[0], rejected[0], system):
        return DIFFERENT_PROMPTS
    return _pair(row, data, *chosen, rejected[1])


FORMATS: dict[str, Callable[[Row, PairData, str | None], Pair | str]] = {
    "columns": from_columns,
    "orca": from_columns,
    "messages": from_messages,
    "conversational": from_conversational,
    "oasst": from_oasst,
    "comparia": from_comparia,
    "comparia_turns": from_comparia,
}


def _pair(row: Row, data: PairData, prompt: Conversation, chosen: Reply, rejected: Reply) -> Pair:
    """The pair. Raises an UnusableRow for one that teaches nothing."""
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError(f"{row.where}: the prompt should end in a turn of the user")
    for reply in (chosen, rejected):
        if not reply.text:
            raise UnusableRow(
                f"{row.where}: column '{reply.column}' is empty or ends without a reply: "
                + NOTHING_TO_LEARN,
                messages.EMPTY_REPLY,
            )
    if chosen.text == rejected.text:
        raise UnusableRow(
            f"{row.where}: columns '{chosen.column}' and '{rejected.column}' hold the same text: "
            + NOTHING_TO_LEARN,
            "the replies are equal",
        )
    return Pair(tuple(prompt), chosen.text, rejected.text, row.where)


def _alike(first: Conversation, second: Conversation, system: str | None) -> bool:
    """Whether two conversations are the same prompt once `system` replaces their system turns."""
    return messages.with_system(first, system) == messages.with_system(second, system)


def check_columns(row: Row, data: PairData | ReplyData) -> None:
    """Check that no column holds what trl would show the model and this project does not."""
    for name in BESIDE_TURNS:
        if name not in (data.columns.ignored or ()) and not messages.is_empty(row.values.get(name)):
            raise UnusableRow(
                f"{row.where}: column '{name}' would be left out of training. If the model should "
                f"not see it, set data.columns.ignored=[{name}]",
                f"column '{name}' is not empty",
            )


def _text_replies(row: Row, data: PairData) -> list[Reply]:
    names = (data.columns.chosen, data.columns.rejected)
    return [Reply(name, row.text(name, may_be_empty=True)) for name in names]


def with_own_system(read: R, row: Row, data: PairData | ReplyData, system: str | None) -> R:
    """`read` with the text in `data.columns.system`, if there is any, as its system turn.

    A French Orca set without that column can be read if `system`, prompt.system, is given.
    """
    column = data.columns.system
    lacks = data.format == "orca" and system is not None and column not in row.values
    if column is None or lacks or (value := row.value(column)) is None:
        return read
    own = checked_text(value, f"{row.where}: column '{column}'", may_be_empty=True)
    return replace(read, prompt=tuple(messages.with_system(read.prompt, own))) if own else read


def _languages(row: Row, column: str) -> list[str]:
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
            f"in column 'model_a_name' or 'model_b_name', got {quoted(text)}"
        )
    return sides[0]
