"""The warnings of the data report: each rule with its threshold and what to do about it."""

from collections.abc import Iterator
from typing import Any

LONGER = 0.80  # share of pairs whose chosen reply is the longer one
COPIES = 0.05  # share of rows that repeat another prompt, exactly or nearly
WANTED = 0.90  # share of chosen replies in the language
TOO_LONG = 0.05  # share of pairs over the limit
FEWEST = 200  # pairs


def warnings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"about", "seen", "threshold", "text"}` for each rule that the report breaks."""
    names = ("about", "seen", "threshold", "text")
    return [dict(zip(names, broken, strict=True)) for broken in _broken(report)]


def _broken(report: dict[str, Any]) -> Iterator[tuple[str, float, float, str]]:
    kept = report["rows"]["kept"]
    if (rendered := report["already_rendered"]) is not None:
        yield "special tokens", rendered["count"], 0, rendered["text"]

    bias = report["length_bias"]
    longer = bias["chosen_longer_share"]["value"] if bias["pairs"] else 0.0
    if longer > LONGER:
        yield (
            *("length bias", longer, LONGER),
            f"chosen is longer in {bias['chosen_longer']} of {bias['pairs']} pairs (threshold "
            f"{LONGER:.0%}): the policy will learn to write more. Add pairs whose chosen reply is "
            "the shorter, or divide by length with training.loss_type=[sigmoid_norm]",
        )

    exact, near = (report["copies"][name] for name in ("same_prompt", "near_prompt"))
    copies = (exact + near) / kept if kept else 0.0
    if copies > COPIES:
        yield (
            *("copies", copies, COPIES),
            f"{exact + near} of {kept} prompts repeat an earlier one, {exact} exactly and {near} "
            f"nearly (threshold {COPIES:.0%}): they count several times and make held-out scores "
            "look better than they are. Keep one row of each",
        )

    languages = report["languages"]
    wanted, sampled = languages["wanted"], languages["sampled"]
    share = languages["chosen"].get(wanted, 0) / sampled if sampled else 1.0
    if share < WANTED:
        yield (
            *("language", share, WANTED),
            f"only {share:.1%} of the chosen replies are in '{wanted}' (threshold {WANTED:.0%}): "
            "the policy will learn to answer in the others. Filter the rows, with data.language "
            "where a column names it",
        )

    over, limit = report["tokens"]["over_limit"], report["tokens"]["limit"]
    if over["share"] > TOO_LONG:
        yield (
            *("length limit", over["share"], TOO_LONG),
            f"{over['pairs']} of {over['of']} pairs do not fit {limit} tokens (threshold "
            f"{TOO_LONG:.0%}), and the longest replies are the ones lost. Raise "
            "model.max_seq_length",
        )

    if kept < FEWEST:
        yield (
            *("few pairs", kept, FEWEST),
            f"only {kept} pairs (threshold {FEWEST}): their scores will have wide intervals. Add "
            "pairs",
        )

    overlap = report["evaluation_questions"]
    if overlap is not None and overlap["pairs"]:
        yield (
            *("evaluation questions", overlap["pairs"], 0),
            f"prompts that contain a question of data.check_against: {overlap['pairs']} (threshold "
            f"0), such as {overlap['rows'][0]}. A score on those questions will mean nothing. "
            "Remove the rows",
        )
