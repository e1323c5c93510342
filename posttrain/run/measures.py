"""Names and formats of measures, the same in tables, plots and pages.

A measure is `{"value", "n", "low", "high"}`, a change `{"difference", "low", "high", "p_value",
"n"}`. Any number may be null, which reads "not measurable"; a name that is not listed here gets a
label made from its own words.
"""

import re
from collections.abc import Mapping
from typing import Any

from eval.rewarded import PART, TOTAL

LABELS = {
    TOTAL: "total reward",
    "strict": "strict accuracy",
    "tagged": "tagged accuracy",
    "lenient": "lenient accuracy",
    "format_rate": "format rate",
    "truncated_rate": "truncated replies",
    "reward_accuracy": "preference accuracy",
    "length_controlled_accuracy": "length-controlled accuracy",
    "reward_margin": "reward margin",
    "french_share": "replies in French",
    "french_share_without_system": "French, no system prompt",
    "language_share": "replies in the right language",
    "language_share_without_system": "same, no system prompt",
    "ended_share": "replies ended by EOS",
    "repetition_rate": "repeated 4-grams",
    "kl_per_token": "KL per token (nats)",
    "reply_loss": "loss of held-out replies",
    "mean_tokens": "mean tokens",
    "majority_vote": "majority vote",
}
SETS = {
    "gsm8k": "GSM8K",
    "gsm8k_platinum": "GSM8K-Platinum",
    "mgsm_en": "MGSM-en",
    "mgsm_fr": "MGSM-fr",
}
HEADLINES = {
    "SFT": "strict",
    "GRPO": "strict",
    "DPO": "reward_accuracy",
}  # what each method sets out to raise
OF_PAIRS = {"reward_accuracy", "length_controlled_accuracy", "reward_margin"}
SHARES = {
    *("strict", "tagged", "lenient", "majority_vote"),
    *("french_share_without_system", "language_share_without_system"),
}
SHARE_ENDINGS = ("accuracy", "rate", "share")
LOWER_IS_BETTER = {"truncated_rate", "repetition_rate", "reply_loss"}
NEITHER_IS_BETTER = {"mean_tokens", "kl_per_token"}
NOT_MEASURABLE = "not measurable"


def headline(method: str, found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The measure that a run of a method is judged by, of those found before and after training.

    It is one of the run's own problems or pairs, never of a set that was scored beside them. Where
    it cannot be compared, the first that can; None where none can.
    """
    comparable = [name for name, values in found.items() if values.get("difference") is not None]
    wanted = HEADLINES.get(method)
    return wanted if wanted in comparable else next(iter(comparable), None)


def things(method: str, name: str) -> str:
    """What a measure of a run is taken on: problems, pairs or prompts."""
    if method == "GRPO" or "/" in name:  # the sets scored beside a run's own are problems
        return "problems"
    if name == "reply_loss":
        return "replies"
    if method == "SFT":
        return "problems"
    if method == "DPO":
        return "pairs" if name in OF_PAIRS else "prompts"
    return "rows"


def label(name: str) -> str:
    """`strict` is "strict accuracy", `mgsm_fr/strict` "MGSM-fr: strict accuracy"."""
    of, _, own = name.rpartition("/")
    words = LABELS.get(own) or own.replace(PART, "reward ").replace("_", " ")
    return f"{set_label(of)}: {words}" if of else words


def set_label(of: str) -> str:
    """The name of a set of problems: `mgsm_fr` is "MGSM-fr"."""
    return SETS.get(of) or label(of)


def is_share(name: str) -> bool:
    """Whether a measure is a proportion, shown in percent."""
    own = name.rpartition("/")[2]
    if is_reward(own):  # one that is called `accuracy` may still give 2.0
        return False
    return own in SHARES or own.endswith(SHARE_ENDINGS) or re.match(r"pass@\d", own) is not None


def is_reward(name: str) -> bool:
    """Whether a measure is in the units of rewards: the total, or one of them."""
    return name == TOTAL or name.startswith(PART)


def better(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is known to be.

    Of a reward alone it is not, as its weight may be negative.
    """
    own = name.rpartition("/")[2]
    if own in LOWER_IS_BETTER:
        return -1
    known = own in LABELS or is_share(own)
    return int(known and own not in NEITHER_IS_BETTER)


def plain(name: str, number: float | None) -> str:
    """One number of a measure: `2.3%` or `1.04`."""
    if number is None:
        return NOT_MEASURABLE
    return f"{number:.1%}" if is_share(name) else f"{number:{_digits(number)}}"


def _digits(number: float) -> str:
    """Two decimals, fewer for large numbers, and two digits for what would round to nothing."""
    if abs(number) >= 100:
        return ".1f"
    return ".2f" if abs(number) >= 0.1 or number == 0 else ".2g"


def interval(name: str, measure: Mapping[str, Any]) -> str:
    """The 95% interval of a measure: `1.1–4.7%`; empty where there is none."""
    low, high = measure.get("low"), measure.get("high")
    if low is None or high is None:
        return ""
    if is_share(name):
        return f"{100 * low:.1f}–{plain(name, high)}"
    return f"{plain(name, low)} to {plain(name, high)}"


def value(name: str, measure: Mapping[str, Any]) -> str:
    """A measure with its interval: `2.3% [1.1%, 4.7%]`."""
    low, high = measure.get("low"), measure.get("high")
    within = "" if low is None or high is None else f" [{plain(name, low)}, {plain(name, high)}]"
    return plain(name, measure.get("value")) + within


def signed(name: str, number: float | None) -> str:
    """A difference without its unit: `+96.3` (points of a share) or `+1.04`."""
    if number is None:
        return "-"
    return f"{100 * number:+.1f}" if is_share(name) else f"{number:+{_digits(number)}}"


def change(name: str, values: Mapping[str, Any]) -> str:
    """A change with its interval: `+96.3 points [+94.0, +98.3]`."""
    within = span(name, values).replace(" to ", ", ")
    return moved(name, values.get("difference")) + (f" [{within}]" if within else "")


def span(name: str, values: Mapping[str, Any]) -> str:
    """The 95% interval of a change without its unit: `+94.0 to +98.3`; empty without one."""
    low, high = (signed(name, values.get(key)) for key in ("low", "high"))
    return "" if "-" in (low, high) else f"{low} to {high}"


def moved(name: str, difference: float | None) -> str:
    """A difference with its unit: `+96.3 points`, or `-` where there is none."""
    points = " points" if is_share(name) and difference is not None else ""
    return signed(name, difference) + points


def p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def p_is(p: float | None) -> str:
    """`p = 0.016` or `p < 1e-6`; without a p-value `no p-value`."""
    if p is None:
        return "no p-value"
    said = p_value(p)
    return f"p {said}" if said.startswith("<") else f"p = {said}"


def direction(name: str, values: Mapping[str, Any]) -> int:
    """1 where a change is an improvement beyond chance, -1 where it is a loss, else 0.

    Beyond chance: p < 0.05 and a 95% interval that leaves out zero.
    """
    low, high, p = (values.get(key) for key in ("low", "high", "p_value"))
    if low is None or high is None or p is None or p >= 0.05 or low <= 0 <= high:
        return 0
    return better(name) * (1 if low > 0 else -1)
