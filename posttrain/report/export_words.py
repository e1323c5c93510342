"""The checks of export.json as text: for the terminal, the model card and the report."""

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.base import terminal
from posttrain.run.results import Check


def _percent(value: float) -> str:
    return f"{100 * value:.2g}%" if abs(value) < 0.1 else f"{100 * value:.0f}%"


_plain, _short = "{:.4g}".format, "{:.2g}".format
_steps, _nats = "{:.2g} rounding steps".format, "{:.2g} nats".format

# By the name in export.json: what it measures, and its figures with their unit.
WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "weight_error": ("weights, largest error", _steps),
    "chat_template": ("prompts rendered differently", _plain),
    "tokenisation": ("texts tokenised differently", _plain),
    "relative_logit_difference": ("logits, difference from the adapter's", _percent),
    "max_logit_difference": ("one logit, largest difference", _short),
    "learning_lost": ("training's change, lost to rounding", _percent),
    "arithmetic_difference": ("logits, changed by 16-bit arithmetic", _percent),
    "divergence": ("divergence from the adapter, a token", _nats),
    "greedy_text": ("greedy replies that differ", _plain),
    "max_log_prob_difference": ("one token's log-probability, off by", _nats),
    "perplexity_change": ("perplexity, change", _percent),
    "answer_disagreement": ("answers to problems that differ", _percent),
    "proven_gguf": ("made from a proven GGUF file", _plain),
}
# What to do where a check fails, by its name.
ADVICE = {
    "learning_lost": (
        "the change that training made is small beside what this type can hold: use --dtype "
        "float16, which rounds eight times finer than bfloat16, or train longer"
    ),
    "divergence": (
        "if the weights are right, the model's activations may be too large for float16: use "
        "--dtype bfloat16"
    ),
}


def check_cells(check: Check) -> tuple[str, str, str]:
    """What a check measured, its result, and what is allowed; the last is empty without a limit.
    A name that is not known is shown as it is."""
    label, figure = WORDS.get(check.name, (check.name.replace("_", " "), _plain))
    result, allowed = _text(check.value, figure), _text(check.limit, figure)
    if check.of is not None:
        of = {0: "none allowed", check.of: "all needed"}
        return label, f"{result} of {check.of}", of.get(check.limit, f"at most {allowed}")
    if isinstance(check.limit, str):  # a text that is wanted
        return label, result, "" if check.value == check.limit else allowed
    return label, result, f"at most {allowed}" if allowed else ""


def _text(value: Any, figure: Callable[[float], str]) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return figure(value)
    return "" if value is None else str(value)


def advice(failed: list[str]) -> list[str]:
    """What to do about the checks that failed, where there is something to say."""
    return [f"advice: {ADVICE[name]}" for name in failed if name in ADVICE]


def size(count: float | None) -> str:
    """Bytes as `988.1 MB`, below 0.1 MB as `1.2 kB`; `-` where there are none."""
    if not count:
        return "-"
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def lines(checks: Sequence[Check]) -> list[str]:
    """Checks as an indented table, one line each; where that is too wide, as wrapped lines."""
    rows = [("  ok" if check.passed else "  FAILED", *check_cells(check)) for check in checks]
    aligned = terminal.align(rows)
    if terminal.fits(aligned):
        return aligned
    wrapped = []
    for state, label, result, limit in rows:
        text = f"{label}: {result}" + (f" ({limit})" if limit else "")
        wrapped += terminal.entry(state.strip(), text, label_width=8).split("\n")
    return wrapped
