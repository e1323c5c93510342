"""Prompts with the reply that a model should learn to give, and how likely a policy finds it."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval import Prompted


@dataclass(frozen=True)
class Demonstration(Prompted):
    """A prompt and the reply to learn."""

    reply: str
    answer: str | None = None
    """The gold number of the question, where the row holds it."""


def losses(log_probs: Sequence[Sequence[float]]) -> list[float]:
    """The loss of each reply: minus the mean log-probability of its tokens, in nats.

    `log_probs` holds those of each reply's tokens, the end-of-sequence token included.
    """
    return [-sum(tokens) / len(tokens) for tokens in log_probs]
