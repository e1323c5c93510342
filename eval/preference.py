"""Score a policy on preference pairs by DPO's implicit reward.

The implicit reward of a reply is beta (log pi(reply | prompt) - log ref(reply | prompt)): equation
5 of https://arxiv.org/abs/2305.18290 without the term that depends on the prompt alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eval import Message
from eval.stats import compare, mean, proportion


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt (a conversation that ends in a user turn)."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str = field(default="", compare=False, repr=False)
    """File and row, for messages."""


@dataclass(frozen=True)
class ScoredPair:
    """Implicit rewards of one pair, in nats times beta."""

    chosen_reward: float
    rejected_reward: float

    @property
    def reward_margin(self) -> float:
        return self.chosen_reward - self.rejected_reward

    @property
    def reward_accuracy(self) -> float:
        """1.0 if chosen is preferred, 0.0 if rejected is, 0.5 if neither.

        The reference itself scores every pair 0 and 0, and so 0.5: it has learned no preference.
        """
        return 0.5 if self.reward_margin == 0 else float(self.reward_margin > 0)


def score_pairs(
    policy: Sequence[tuple[float, float]], reference: Sequence[tuple[float, float]], beta: float
) -> list[ScoredPair]:
    """Scores from the summed log-probabilities (chosen, rejected) of policy and reference."""
    return [
        ScoredPair(beta * (p[0] - r[0]), beta * (p[1] - r[1]))
        for p, r in zip(policy, reference, strict=True)
    ]


def summarise(pairs: Sequence[ScoredPair], in_language: Sequence[float]) -> dict[str, Any]:
    """`{"value", "n", "low", "high"}` for every measure that was taken."""
    report = {
        "reward_accuracy": proportion([pair.reward_accuracy for pair in pairs]),
        "reward_margin": mean([pair.reward_margin for pair in pairs]),
    }
    return {**report, "french_share": proportion(in_language)} if in_language else report


def compare_pairs(
    before: tuple[Sequence[ScoredPair], Sequence[float]],
    after: tuple[Sequence[ScoredPair], Sequence[float]],
) -> dict[str, dict[str, Any]]:
    """Both summaries and, per measure, the paired difference with its interval and p-value."""
    first, second = summarise(*before), summarise(*after)
    old, new = _values(*before), _values(*after)
    return {
        name: {"before": first[name], "after": second[name], **compare(old[name], new[name])}
        for name in first
    }


def _values(
    pairs: Sequence[ScoredPair], in_language: Sequence[float]
) -> dict[str, Sequence[float]]:
    return {
        "reward_accuracy": [pair.reward_accuracy for pair in pairs],
        "reward_margin": [pair.reward_margin for pair in pairs],
        "french_share": in_language,
    }


def as_row(pair: Pair, scored: ScoredPair) -> dict[str, Any]:
    """A pair and its scores as one JSON row."""
    return {**asdict(pair), **asdict(scored), "reward_margin": scored.reward_margin}
