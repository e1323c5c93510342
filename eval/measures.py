"""Named measures and how they changed, from one score a row: a pair, a reply, a problem.

`KINDS` is the one table of measures: what each is called, its unit, which way is better, what it is
taken on and where it is the headline. A name that is not in it gets a label made from its words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from eval import stats
from eval.stats import NOT_MEASURABLE, Difference, Measure

Judged = Literal["numbers", "rewards", "pairs", "losses"]
"""What decides whether a run improved: right numbers, rewards, preferences, or the loss alone."""
Scores = Mapping[str, Sequence[float | None]]
"""Per measure, one score a row, None where it cannot be scored; before and after, the same rows in
the same order."""

TOTAL = "total_reward"
PART = "reward:"  # before a reward's name, in the name of its measure


@dataclass(frozen=True)
class Kind:
    """What is known of a measure."""

    label: str
    unit: Literal["share", "number"] = "share"
    better: Literal[1, 0, -1] = 1
    """1 where more is better, -1 where less is, 0 where neither is known to be."""
    of: str = "problems"
    """What it is taken on."""
    binary: bool = True
    """A row scores 0 or 1, or one half for a tie: the interval is Wilson's, not a bootstrap."""
    heads: Judged | None = None
    """The runs whose headline it is."""


KINDS = {
    TOTAL: Kind("total reward", "number", binary=False, heads="rewards"),
    "strict": Kind("strict accuracy", heads="numbers"),
    "tagged": Kind("tagged accuracy"),
    "lenient": Kind("lenient accuracy"),
    "format_rate": Kind("format rate"),
    "truncated_rate": Kind("truncated replies", better=-1),
    "majority_vote": Kind("majority vote"),
    "reward_accuracy": Kind("preference accuracy", of="pairs", heads="pairs"),
    "length_controlled_accuracy": Kind("length-controlled accuracy", of="pairs"),
    "reward_margin": Kind("reward margin", "number", of="pairs", binary=False),
    "french_share": Kind("replies in French", of="prompts"),
    "french_share_without_system": Kind("French, no system prompt", of="prompts"),
    "language_share": Kind("replies in the right language", of="prompts"),
    "language_share_without_system": Kind("same, no system prompt", of="prompts"),
    "ended_share": Kind("replies ended by EOS", of="prompts"),
    "repetition_rate": Kind("repeated 4-grams", better=-1, of="prompts", binary=False),
    "kl_per_token": Kind("KL per token (nats)", "number", 0, "prompts", binary=False),
    "mean_tokens": Kind("mean tokens", "number", 0, "prompts", binary=False),
    "reply_loss": Kind("loss of held-out replies", "number", -1, "replies", False, heads="losses"),
}


def kind(name: str) -> Kind:
    """What is known of a measure. `mgsm_fr/strict` is `strict` on another set of problems."""
    own = name.rpartition("/")[2]
    if own in KINDS:
        return KINDS[own]
    words = own.replace(PART, "reward ").replace("_", " ")
    if own.startswith(PART):  # one called `accuracy` may give 2.0, and its weight be negative
        return Kind(words, "number", 0, binary=False)
    if own.startswith("pass@"):
        return Kind(words, binary=False)
    if own.endswith(("accuracy", "rate", "share")):
        return Kind(words, of="rows")
    return Kind(words, "number", 0, "rows", binary=False)


def is_share(name: str) -> bool:
    """Whether a measure is a proportion, shown in percent."""
    return kind(name).unit == "share"


def is_reward(name: str) -> bool:
    """Whether a measure is in the units of rewards: the total, or one of them."""
    return name == TOTAL or name.startswith(PART)


def headline(judged_by: Judged) -> str:
    """The measure that a run is judged by, on its held-out rows."""
    return next(name for name, each in KINDS.items() if each.heads == judged_by)


@dataclass(frozen=True)
class Change(Difference):
    """A measure before and after training, and the paired difference."""

    before: Measure = NOT_MEASURABLE
    after: Measure = NOT_MEASURABLE

    @property
    def alone(self) -> Difference:
        """The difference without the two sides, as in eval/comparison.json."""
        return Difference(self.difference, self.low, self.high, self.p_value, self.n)


def summarise(scores: Scores, averaged: bool = False) -> dict[str, Measure]:
    """Every measure, over the rows that could be scored. `averaged`: a row's score is a mean over
    several samples, and so no longer right or wrong."""
    return {
        name: _measure(name, [value for value in values if value is not None], averaged)
        for name, values in scores.items()
    }


def compare(
    before: Scores, after: Scores, averaged: tuple[bool, bool] = (False, False)
) -> dict[str, Change]:
    """Every measure on both sides and its paired difference, over the rows that could be scored on
    both; `averaged` as `summarise` takes it, for each side. Raises ValueError where the two have
    not the same measures."""
    if list(before) != list(after):
        raise ValueError(f"measures differ: {', '.join(before)} and {', '.join(after)}")
    changes = {}
    for name in before:
        pairs = zip(before[name], after[name], strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        first, second = [a for a, _ in both], [b for _, b in both]
        difference = stats.compare(first, second) if both else Difference()
        if (
            is_share(name)
            and difference.difference is not None
            and difference.low == difference.high
        ):
            low, high = stats.unvaried_interval(difference.difference, first)
            difference = replace(difference, low=low, high=high)
        sides = (_measure(name, first, averaged[0]), _measure(name, second, averaged[1]))
        changes[name] = Change(**vars(difference), before=sides[0], after=sides[1])
    return changes


def _measure(name: str, values: Sequence[float], averaged: bool) -> Measure:
    if not values:
        return NOT_MEASURABLE
    known, different = kind(name), set(values)
    wilson = known.binary and not averaged and different <= {0.0, 0.5, 1.0}
    # A bootstrap of shares that are all 0 or all 1 would have no width, however few they are.
    wilson = wilson or (known.unit == "share" and different in ({0.0}, {1.0}))
    return stats.proportion(values) if wilson else stats.mean(values)


def direction(name: str, change: Difference) -> int:
    """1 where a change is an improvement beyond chance, -1 where it is a loss, else 0. Beyond
    chance: p < 0.05 and a 95% interval that leaves out zero."""
    low, high, p = change.low, change.high, change.p_value
    if low is None or high is None or p is None or p >= 0.05 or low <= 0 <= high:
        return 0
    return kind(name).better * (1 if low > 0 else -1)
