"""Scores: problems or pairs and a generate function in, a scored report out.

Nothing here knows how text is produced, so the same scorer serves an Unsloth model, a server or a
GGUF file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Message = dict[str, str]
Conversation = list[Message]


@dataclass(frozen=True)
class Completion:
    """One generated reply."""

    text: str
    tokens: int | None
    """Generated tokens, the end-of-sequence token included; None where a server counts none."""
    truncated: bool
    """True if the length limit, not the model, ended it."""
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    """The generated token ids; empty where a server wrote the reply."""


@dataclass(frozen=True)
class MeasuredReply:
    """One reply to one prompt, as eval/replies.py measures it."""

    text: str
    tokens: int
    """Generated tokens, the end-of-sequence token included."""
    ended: bool
    """The policy ended it with EOS; False where the length limit did."""
    in_language: bool
    """It is in the language that the run wants, see data.language."""
    repetition: float


Generate = Callable[[Sequence[Conversation]], list[Completion]]
"""Answers each conversation (ending in a user turn) once, in order."""


class Example(Protocol):
    """A worked example: a question and the reply that a model should give to it."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...


class PromptLike(Protocol):
    """What precedes a question in its prompt, as the settings of `prompt` have it."""

    @property
    def system(self) -> str | None: ...

    @property
    def examples(self) -> Sequence[Example]: ...


@dataclass(frozen=True)
class PromptFormat:
    """A system turn and worked examples, without the settings of a run."""

    system: str | None = None
    examples: Sequence[Example] = ()


def conversation(question: str, prompt: PromptLike) -> Conversation:
    """The prompt of a question: a system turn (unless None or empty), two turns for each worked
    example, and the question as the last user turn."""
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*turns, *example_turns(prompt.examples), {"role": "user", "content": question}]


def example_turns(examples: Sequence[Example]) -> Conversation:
    """A user turn and an assistant turn for each worked example."""
    turns = []
    for example in examples:
        turns.append({"role": "user", "content": example.question})
        turns.append({"role": "assistant", "content": example.answer})
    return turns


@dataclass(frozen=True)
class Prompted:
    """A row of data with a prompt: a conversation that ends in a user turn."""

    prompt: tuple[Message, ...]
    where: str = field(default="", compare=False, repr=False, kw_only=True)
    """File and row, for messages."""
    examples: tuple[Message, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    """The turns of the worked examples of `prompt.examples`, the same for every row of a run."""

    @property
    def conversation(self) -> Conversation:
        """The prompt as the model reads it: worked examples follow its system turn."""
        own = int(self.prompt[0]["role"] == "system")
        return [*self.prompt[:own], *self.examples, *self.prompt[own:]]


@dataclass(frozen=True)
class Demonstration(Prompted):
    """A prompt and the reply that a model should learn to give."""

    reply: str
    answer: str | None = None
    """The gold number of the question, where the row holds it."""
