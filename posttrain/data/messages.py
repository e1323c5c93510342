"""Read columns that hold a conversation: a list of messages, each with a role and a content."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from eval import Conversation, Message
from posttrain.base.errors import DataError, given, kind_of
from posttrain.data.sources import Row, checked_text

ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "function", "ipython")
EMPTY_REPLY = "a reply is empty"


class LeftOut(Exception):
    """A row that holds nothing to train on, such as a tie: left out, and counted under its text."""


class UnusableRow(DataError):
    """A row that would be trained without a part of it, or teaches nothing. `data.unusable` says
    whether it stops the run or is left out and counted under `why`."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(
            f"{message}. Fix the row, or set data.unusable=drop to leave out all such rows"
        )
        self.why = why


class Reply(NamedTuple):
    """A reply and the column that it comes from, for error messages."""

    column: str
    text: str


def user_turn(text: str) -> Message:
    return {"role": "user", "content": text}


def with_system(turns: Sequence[Message], system: str | None) -> Conversation:
    """The turns with `system` as their system turn; None keeps the row's own, "" removes it."""
    if system is None:
        return list(turns)
    own = bool(turns) and turns[0]["role"] == "system"
    return [*([{"role": "system", "content": system}] if system else []), *turns[own:]]


def is_empty(value: Any) -> bool:
    """Whether a value is empty: null, "", [] or an object of such values."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def turns(
    row: Row, column: str, until: str | None = None, ignored: Collection[str] | None = None
) -> Conversation:
    """The turns in a column. The last one may be an empty reply, which the caller has to check.

    The column `until` holds the number, from 0, of the last turn that is read, with its reply. A
    message may hold only role, content and the `ignored` keys: the model would not see others.
    Raises an UnusableRow where it holds more, is of a tool, or is an earlier and empty reply; a
    DataError without a list of messages with a known role and some text, or without such a turn.
    """
    value, what = row.value(column), f"{row.where}: column '{column}'"
    if not isinstance(value, list) or not value:
        kind = "none" if value == [] else kind_of(value)
        raise DataError(f"{what} should hold a list of messages, got {kind}")
    if until is not None:
        value = _first_turns(row, value, until)
    read: list[Message] = []
    for number, message in enumerate(value, start=1):
        here = f"{what}, message {number}"
        role = _role(message, number, here)
        _check_keys(message, here, ignored or ())
        if "content" not in message:
            raise DataError(f"{here} should have a role and a content")
        content = _text(message["content"], here)
        if content is None and role == "assistant":
            content = ""
        text = checked_text(content, here, may_be_empty=role == "assistant")
        if not text and number < len(value):
            raise UnusableRow(f"{here} is empty", EMPTY_REPLY)
        read.append({"role": role, "content": text})
    return read


def _role(message: Any, number: int, here: str) -> str:
    if not isinstance(message, dict) or "role" not in message:
        renamed = isinstance(message, dict) and {"from", "value"} <= message.keys()
        hint = "; rename from and value, human and gpt to user and assistant" if renamed else ""
        raise DataError(f"{here} should have a role and a content{hint}")
    role = message["role"]
    if role in TOOL_ROLES:
        raise UnusableRow(
            f"{here} has the role '{role}', and tools are not trained", "a tool's message"
        )
    if role not in ROLES:
        raise DataError(f"{here} has the role {role!r}; expected one of {', '.join(ROLES)}")
    if role == "system" and number > 1:
        raise DataError(f"{here} has the role 'system', which only the first message may have")
    return str(role)


def _check_keys(message: dict[str, Any], here: str, ignored: Collection[str]) -> None:
    """Check that a message holds no more than a role and a content."""
    for key, value in message.items():
        if key not in ("role", "content", *ignored) and not is_empty(value):
            raise UnusableRow(
                f"{here} has '{key}', which would be left out of training. If the model should "
                f"not see it, set data.columns.ignored=[{key}]",
                f"a message has '{key}'",
            )


def _text(content: Any, here: str) -> Any:
    """The content, or the text of its one part where it is a list of parts."""
    if not isinstance(content, list):
        return content
    part = content[0] if len(content) == 1 and isinstance(content[0], dict) else {}
    more = [value for key, value in part.items() if key not in ("type", "text")]
    if part.get("type") == "text" and all(map(is_empty, more)):
        return part.get("text")
    raise UnusableRow(
        f"{here} should hold text, got {given(content)}", "a message is more than one text"
    )


def exchange(
    row: Row, column: str, until: str | None = None, ignored: Collection[str] | None = None
) -> tuple[Conversation, Reply]:
    """The turns() in a column as prompt and last reply, which is empty after a user's turn."""
    read = turns(row, column, until, ignored)
    if read[-1]["role"] != "assistant":
        return read, Reply(column, "")
    return read[:-1], Reply(column, read[-1]["content"])


def _first_turns(row: Row, value: list[Any], column: str) -> list[Any]:
    """The messages up to the next turn of the user after the one that is counted in the column."""
    number = row.value(column)
    # Not replies are counted, as a model may have left a turn of the user without one.
    users = [n for n, m in enumerate(value) if isinstance(m, dict) and m.get("role") == "user"]
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(users):
        raise DataError(
            f"{row.where}: column '{column}' should count one of {len(users)} turns of the user "
            f"from 0, got {number!r}"
        )
    return value[: [*users, len(value)][number + 1]]
