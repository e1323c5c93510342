"""Prompts with the reply that a model should learn to give, and how likely a policy finds it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval import Conversation, Message, with_examples


@dataclass(frozen=True)
class Demonstration:
    """A prompt (a conversation that ends in a user turn) and the reply to learn."""

    prompt: tuple[Message, ...]
    reply: str
    answer: str | None = None
    """The gold number of the question, where the row holds it."""
    where: str = field(default="", compare=False, repr=False)
    """File and row, for messages."""
    examples: tuple[Message, ...] = field(default=(), compare=False, repr=False)
    """The turns of the worked examples of `prompt.examples`, the same for every row of a run."""

    @property
    def conversation(self) -> Conversation:
        """The prompt as the model reads it."""
        return with_examples(self.prompt, self.examples)


def losses(log_probs: Sequence[Sequence[float]]) -> list[float]:
    """The loss of each reply: minus the mean log-probability of its tokens, in nats.

    `log_probs` holds those of each reply's tokens, the end-of-sequence token included.
    """
    return [-sum(tokens) / len(tokens) for tokens in log_probs]
