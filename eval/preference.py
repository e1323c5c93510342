"""Score a policy on preference pairs by DPO's implicit reward.

The implicit reward of a reply is beta (log pi(reply | prompt) - log ref(reply | prompt)): equation
5 of https://arxiv.org/abs/2305.18290 without the term that depends on the prompt alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from eval import Prompted


@dataclass(frozen=True)
class Pair(Prompted):
    """Two replies to one prompt."""

    chosen: str
    rejected: str


@dataclass(frozen=True)
class ScoredPair:
    """Implicit rewards of one pair, in nats times beta, and the lengths of its replies."""

    chosen_reward: float
    rejected_reward: float
    chosen_tokens: int
    rejected_tokens: int
    """Lengths of the replies, without EOS."""

    @property
    def reward_margin(self) -> float:
        return self.chosen_reward - self.rejected_reward

    @property
    def reward_accuracy(self) -> float:
        """1.0 if chosen is preferred, 0.0 if rejected is, 0.5 if neither, as by the reference
        itself, whose rewards are all 0: it has learned no preference."""
        return 0.5 if self.reward_margin == 0 else float(self.reward_margin > 0)


def score_pairs(
    policy: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]],
    tokens: Sequence[tuple[int, int]],
    beta: float,
) -> list[ScoredPair]:
    """Scores from the summed log-probabilities of policy and reference and from the lengths in
    tokens, each of (chosen, rejected)."""
    return [
        ScoredPair(beta * (p[0] - r[0]), beta * (p[1] - r[1]), *length)
        for p, r, length in zip(policy, reference, tokens, strict=True)
    ]


def scores(pairs: Sequence[ScoredPair]) -> dict[str, list[float]]:
    """Per measure, one score a pair. The length-controlled accuracy is that of the pairs whose
    chosen reply is the shorter, in tokens: preferring the longer reply gets none of them right.
    There may be no such pair."""
    return {
        "reward_accuracy": [pair.reward_accuracy for pair in pairs],
        "length_controlled_accuracy": [
            pair.reward_accuracy for pair in pairs if pair.chosen_tokens < pair.rejected_tokens
        ],
        "reward_margin": [pair.reward_margin for pair in pairs],
    }


def as_row(pair: Pair, scored: ScoredPair) -> dict[str, object]:
    """A pair and its scores as one JSON row."""
    names = ("prompt", "chosen", "rejected", "where", "examples")
    row = {name: getattr(pair, name) for name in names}
    return {**row, **asdict(scored), "reward_margin": scored.reward_margin}
