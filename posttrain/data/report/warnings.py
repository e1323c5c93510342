"""The warnings of the data report: each rule with its threshold and what to do about it."""

from typing import Any

LONGER = 0.80  # share of pairs whose chosen reply is the longer one
COPIES = 0.05  # share of rows that repeat another prompt, exactly or nearly
WANTED = 0.90  # share of chosen replies in the language
TOO_LONG = 0.05  # share of pairs over the limit
FEWEST = 200  # pairs


def warnings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"about", "seen", "threshold", "text"}` for each rule that the report breaks."""
    rules = (_rendered, _length, _copies, _language, _over_limit, _few, _questions)
    return [warning for rule in rules if (warning := rule(report)) is not None]


def _warning(about: str, seen: float, threshold: float, text: str) -> dict[str, Any]:
    return {"about": about, "seen": seen, "threshold": threshold, "text": text}


def _rendered(report: dict[str, Any]) -> dict[str, Any] | None:
    rendered = report["already_rendered"]
    if rendered is None:
        return None
    return _warning("special tokens", rendered["count"], 0, rendered["text"])


def _length(report: dict[str, Any]) -> dict[str, Any] | None:
    bias = report["length_bias"]
    if not bias["pairs"] or bias["chosen_longer_share"]["value"] <= LONGER:
        return None
    return _warning(
        "length bias",
        bias["chosen_longer_share"]["value"],
        LONGER,
        f"chosen is longer in {bias['chosen_longer']} of {bias['pairs']} pairs (threshold "
        f"{LONGER:.0%}): the policy will learn to write more. Add pairs whose chosen reply is the "
        "shorter, or divide by length with training.loss_type=[sigmoid_norm]",
    )


def _copies(report: dict[str, Any]) -> dict[str, Any] | None:
    copies, kept = report["copies"], report["rows"]["kept"]
    repeated = copies["same_prompt"] + copies["near_prompt"]
    if not kept or repeated / kept <= COPIES:
        return None
    return _warning(
        "copies",
        repeated / kept,
        COPIES,
        f"{repeated} of {kept} prompts repeat an earlier one, {copies['same_prompt']} exactly and "
        f"{copies['near_prompt']} nearly (threshold {COPIES:.0%}): they count several times and "
        "make held-out scores look better than they are. Keep one row of each",
    )


def _language(report: dict[str, Any]) -> dict[str, Any] | None:
    languages = report["languages"]
    if not languages["sampled"]:
        return None
    share = languages["chosen"].get(languages["wanted"], 0) / languages["sampled"]
    if share >= WANTED:
        return None
    return _warning(
        "language",
        share,
        WANTED,
        f"only {share:.1%} of the chosen replies are in '{languages['wanted']}' (threshold "
        f"{WANTED:.0%}): the policy will learn to answer in the others. Filter the rows, with "
        "data.language where a column names it",
    )


def _over_limit(report: dict[str, Any]) -> dict[str, Any] | None:
    over, limit = report["tokens"]["over_limit"], report["tokens"]["limit"]
    if over["share"] <= TOO_LONG:
        return None
    return _warning(
        "length limit",
        over["share"],
        TOO_LONG,
        f"{over['pairs']} of {over['of']} pairs do not fit {limit} tokens (threshold "
        f"{TOO_LONG:.0%}), and the longest replies are the ones lost. Raise model.max_seq_length",
    )


def _few(report: dict[str, Any]) -> dict[str, Any] | None:
    kept = report["rows"]["kept"]
    if kept >= FEWEST:
        return None
    return _warning(
        "few pairs",
        kept,
        FEWEST,
        f"only {kept} pairs (threshold {FEWEST}): their scores will have wide intervals. Add pairs",
    )


def _questions(report: dict[str, Any]) -> dict[str, Any] | None:
    overlap = report["evaluation_questions"]
    if overlap is None or not overlap["pairs"]:
        return None
    return _warning(
        "evaluation questions",
        overlap["pairs"],
        0,
        f"prompts that hold a question of data.check_against: {overlap['pairs']} (threshold 0), "
        f"such as {overlap['rows'][0]}. A score on those questions will mean nothing. Remove the "
        "rows",
    )
