"""Scores: problems or pairs and a generate function in, a scored report out.

Nothing here knows how text is produced, so the same scorer serves an Unsloth model, a server or a
GGUF file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Message = dict[str, str]
Conversation = list[Message]


@dataclass(frozen=True)
class Completion:
    """One generated reply."""

    text: str
    tokens: int
    """Generated tokens, the end-of-sequence token included."""
    truncated: bool
    """True if the length limit, not the model, ended it."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The generated token ids; empty where a server wrote the reply and tells none."""


Generate = Callable[[Sequence[Conversation]], list[Completion]]
"""Answers each conversation (ending in a user turn) once, in order."""


def conversation(user: str, system: str | None) -> Conversation:
    """A system turn (unless None or empty) and a user turn."""
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": user}]
