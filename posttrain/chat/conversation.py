"""A conversation with one or two sides, each of which remembers its own replies."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from eval import Completion, Conversation, Example, Message, PromptFormat, conversation
from posttrain.chat.known import NOTHING, Known

Stream = Callable[[Conversation, int], Generator[Completion, None, None]]
"""Answers a conversation with a seed: the reply so far, again and again as it grows. Closing the
generator ends the reply. Only the last one of a reply that the model ended is not `truncated`."""


@dataclass(frozen=True)
class Side:
    """One model of those that answer."""

    name: str
    """`before` or `after`; `reply` where only one model answers."""
    stream: Stream
    about: str
    """What answers, for a reader."""


@dataclass
class Talk:
    """Questions and replies since the beginning of a conversation."""

    sides: Sequence[Side]
    system: str | None
    seed: int = 0
    known: Known = NOTHING
    examples: Sequence[Example] = ()
    """Worked examples, which every conversation begins with and no side shows."""
    turns: dict[str, list[Message]] = field(default_factory=dict)
    """Of each side: user and assistant in turn."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of each question: the question, the system prompt, and each side's reply and rewards."""

    def ask(self, question: str) -> None:
        """Begin a question, which each side may then answer."""
        self.rows.append({"question": question, "system": self.system})

    def answer(self, side: Side) -> Generator[Completion, None, None]:
        """A side's reply to the question that was asked last, as it grows.

        What there is of it when the generator is closed is what the side remembers; of a reply
        without a word, nothing.
        """
        question = self.rows[-1]["question"]
        turns = self.turns.setdefault(side.name, [])
        asked = [*turns, {"role": "user", "content": question}]
        *opening, _ = conversation(question, self._prompt)
        reply = Completion("", 0, truncated=True)
        try:
            with closing(side.stream([*opening, *asked], self.seed + len(self.rows) - 1)) as stream:
                for reply in stream:
                    yield reply
        finally:
            if reply.text:
                turns[:] = [*asked, {"role": "assistant", "content": reply.text}]
            self.rows[-1][side.name] = reply.text

    def rewards(self, side: Side, reply: Completion) -> dict[str, float | None]:
        """What a reply to the last question earns; empty where no gold answer is known."""
        earned = self.known.rewards(self.rows[-1]["question"], reply, self._prompt)
        if earned:
            self.rows[-1].setdefault("rewards", {})[side.name] = earned
        return earned

    @property
    def _prompt(self) -> PromptFormat:
        return PromptFormat(self.system, self.examples)

    def reset(self, system: str | None) -> None:
        """Begin a new conversation."""
        self.system = system
        self.turns.clear()
        self.rows.clear()
