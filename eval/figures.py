"""How measures, changes and p-values are written: `2.3% [1.1%, 4.7%]`, `+96.3 points`."""

from eval.measures import is_share, kind
from eval.stats import Difference, Measure

SETS = {
    "gsm8k": "GSM8K",
    "gsm8k_platinum": "GSM8K-Platinum",
    "mgsm_en": "MGSM-en",
    "mgsm_fr": "MGSM-fr",
}
NOT_MEASURABLE = "not measurable"


def label(name: str) -> str:
    """`strict` is "strict accuracy", `mgsm_fr/strict` "MGSM-fr: strict accuracy"."""
    of = set_label(name)
    return f"{of}: {kind(name).label}" if of else kind(name).label


def set_label(name: str) -> str:
    """The set of problems that a measure is of: "MGSM-fr" for `mgsm_fr/strict`; "" without one."""
    of = name.rpartition("/")[0]
    return SETS.get(of) or kind(of).label


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


def interval(name: str, low: float | None, high: float | None) -> str:
    """The 95% interval of a measure: `1.1–4.7%`; empty where there is none."""
    if low is None or high is None:
        return ""
    if is_share(name):
        return f"{100 * low:.1f}–{plain(name, high)}"
    return f"{plain(name, low)} to {plain(name, high)}"


def value(name: str, measure: Measure) -> str:
    """A measure with its interval: `2.3% [1.1%, 4.7%]`."""
    low, high = measure.low, measure.high
    within = "" if low is None or high is None else f" [{plain(name, low)}, {plain(name, high)}]"
    return plain(name, measure.value) + within


def signed(name: str, number: float | None) -> str:
    """A difference without its unit: `+96.3` (points of a share) or `+1.04`."""
    if number is None:
        return "-"
    return f"{100 * number:+.1f}" if is_share(name) else f"{number:+{_digits(number)}}"


def moved(name: str, difference: float | None) -> str:
    """A difference with its unit: `+96.3 points`, or `-` where there is none."""
    points = " points" if is_share(name) and difference is not None else ""
    return signed(name, difference) + points


def span(name: str, change: Difference) -> str:
    """The 95% interval of a change without its unit: `+94.0 to +98.3`; empty without one."""
    if change.low is None or change.high is None:
        return ""
    return f"{signed(name, change.low)} to {signed(name, change.high)}"


def change(name: str, change: Difference) -> str:
    """A change with its interval: `+96.3 points [+94.0, +98.3]`."""
    within = span(name, change).replace(" to ", ", ")
    return moved(name, change.difference) + (f" [{within}]" if within else "")


def p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def p_is(p: float | None) -> str:
    """`p = 0.016` or `p < 1e-6`; without a p-value `no p-value`."""
    if p is None:
        return "no p-value"
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
