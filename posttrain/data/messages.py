"""Read columns that hold a conversation: a list of messages, each with a role and a content."""

from typing import Any, NamedTuple

from eval import Conversation, Message
from posttrain.base.errors import DataError
from posttrain.base.expected import kind_of
from posttrain.data.sources import Row, checked_text

ROLES = ("system", "user", "assistant")


class Reply(NamedTuple):
    """A reply and the column that it comes from, for error messages."""

    column: str
    text: str


def with_system(turns: Conversation, system: str | None) -> Conversation:
    """The turns with `system` as their system turn; None keeps the row's own."""
    if system is None:
        return turns
    own = bool(turns) and turns[0]["role"] == "system"
    return [*([{"role": "system", "content": system}] if system else []), *turns[own:]]


def turns(
    row: Row, column: str, until: str | None = None, empty_replies: bool = False
) -> Conversation:
    """The turns in a column. The last one may be an empty reply, which the caller has to check;
    with `empty_replies` earlier ones may too.

    Of a conversation that goes on after the turn whose number, counted from 0, is in the column
    `until`, those up to the reply of that turn are read.

    Raises:
        DataError: it is not a list of messages with a known role and some text, or has no such
            turn.
    """
    value, what = row.value(column), f"{row.where}: column '{column}'"
    if not isinstance(value, list) or not value:
        kind = "none" if value == [] else kind_of(value)
        raise DataError(f"{what} should hold a list of messages, found {kind}")
    if until is not None:
        value = _first_turns(row, value, until)
    read: list[Message] = []
    for number, message in enumerate(value, start=1):
        here = f"{what}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{here} should have a role and a content")
        role = message["role"]
        if role not in ROLES or (role == "system" and number > 1):
            raise DataError(f"{here} has the role {role!r}; expected one of {', '.join(ROLES)}")
        may_be_empty = role == "assistant" and (empty_replies or number == len(value))
        content = "" if message["content"] is None and may_be_empty else message["content"]
        read.append({"role": role, "content": checked_text(content, here, may_be_empty)})
    return read


def exchange(turns: Conversation, column: str) -> tuple[Conversation, Reply]:
    """Split a conversation into its prompt and last reply, which is empty after a user's turn."""
    if turns[-1]["role"] != "assistant":
        return turns, Reply(column, "")
    return turns[:-1], Reply(column, turns[-1]["content"])


def _first_turns(row: Row, value: list[Any], column: str) -> list[Any]:
    """The messages up to the next turn of the user after the one that is counted in the column.

    Turns of the user are counted, not replies, as a model may have left one without a reply.
    """
    number = row.value(column)
    asked = [n for n, m in enumerate(value) if isinstance(m, dict) and m.get("role") == "user"]
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(asked):
        raise DataError(
            f"{row.where}: column '{column}' should count one of {len(asked)} turns of the user "
            f"from 0, found {number!r}"
        )
    return value[: [*asked, len(value)][number + 1]]
