"""The data report: what a set of preference pairs will teach, before a run is paid for.

DPO amplifies every difference between chosen and rejected replies. The report measures length,
language, copies and evaluation questions, and warns of what is beyond a threshold. Pure functions
of pairs and a tokenizer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.preference import Pair
from eval.replies import detect
from eval.stats import proportion
from posttrain.base.files import write_json
from posttrain.data.pairs import Lengths, PairSet
from posttrain.data.prompted import user_turns
from posttrain.data.render import already_rendered
from posttrain.data.report import copies
from posttrain.data.report.examples import render_examples
from posttrain.data.text import normalise

NOT_MEASURABLE = "not measurable"
LANGUAGE_SAMPLE = 1_000  # pairs whose language is identified, evenly spaced
LANGUAGE_CHARACTERS = 500  # of each text, which is enough
# The thresholds of the warnings.
LONGER = 0.80  # share of pairs whose chosen reply is the longer one
COPIES = 0.05  # share of rows that repeat another prompt, exactly or nearly
WANTED = 0.90  # share of chosen replies in the language
TOO_LONG = 0.05  # share of pairs over the limit
FEWEST = 200  # pairs


def build(
    pair_set: PairSet,
    lengths: Sequence[Sequence[Lengths]],
    tokenizer: Any,
    limit: int,
    language: str = "fr",
) -> dict[str, Any]:
    """The data report, as JSON, for `lengths` of `pair_set.train` and `pair_set.held_out`. A pair
    over `limit` tokens counts as dropped, and only its length is reported."""
    pairs, measured = [*pair_set.train, *pair_set.held_out], [*lengths[0], *lengths[1]]
    fits = [length.total <= limit for length in measured]
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    kept_lengths = [length for length, fit in zip(measured, fits, strict=True) if fit]
    train = sum(fits[: len(pair_set.train)])
    too_long = {f"over {limit} tokens": len(pairs) - len(kept)} if len(kept) < len(pairs) else {}
    texts = ((p.where, [*(t["content"] for t in p.prompt), p.chosen, p.rejected]) for p in kept)
    report: dict[str, Any] = {
        "rows": {
            "read": pair_set.rows,
            "kept": len(kept),
            "train": train,
            "held_out": len(kept) - train,
            "validation": len(pair_set.validation),
            "dropped": {**pair_set.dropped, **too_long},
        },
        "tokens": tokens(measured, limit),
        "length_bias": length_bias(kept_lengths, train),
        "languages": languages(kept, language),
        "copies": copied(kept, train),
        "already_rendered": already_rendered(tokenizer, texts),
        "evaluation_questions": overlap(kept, pair_set.questions),
        "examples": render_examples(kept, [length.total for length in kept_lengths], tokenizer),
    }
    names = ("about", "seen", "threshold", "text")
    report["warnings"] = [dict(zip(names, each, strict=True)) for each in warnings(report)]
    return report


def write(report: dict[str, Any], run: Path) -> None:
    """Write data/report.json of a run folder."""
    (run / "data").mkdir(exist_ok=True)
    write_json(run / "data" / "report.json", report)


def tokens(lengths: Sequence[Lengths], limit: int) -> dict[str, Any]:
    """Smallest, median, 95th percentile and largest number of tokens, and how many are over."""
    names = ("prompt", "chosen", "rejected")
    parts = {name: [getattr(length, name) for length in lengths] for name in names}
    parts["whole"] = [length.total for length in lengths]
    over = sum(length > limit for length in parts["whole"])
    return {
        "limit": limit,
        "over_limit": {"pairs": over, "of": len(lengths), "share": over / len(lengths)},
        **{name: _quantiles(values) for name, values in parts.items()},
    }


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    """Quantiles by nearest rank, so that each is the length of some row."""
    import numpy as np

    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    ranks = np.quantile(values, list(shares.values()), method="inverted_cdf")
    return dict(zip(shares, ranks.tolist(), strict=True))


def length_bias(lengths: Sequence[Lengths], train: int) -> dict[str, Any]:
    """How often the longer reply is the chosen one. The pairs after the first `train` are held out:
    length-controlled accuracy is that on those whose chosen reply is the shorter one, and cannot be
    measured without such pairs."""
    if not lengths:
        return {"pairs": 0, "length_controlled_accuracy": NOT_MEASURABLE}
    longer = [(x.chosen > x.rejected) - (x.chosen < x.rejected) for x in lengths]  # or -1: shorter
    controlled = longer[train:].count(-1)
    return {
        "pairs": len(lengths),
        "chosen_longer": longer.count(1),
        "same_length": longer.count(0),
        "chosen_shorter": longer.count(-1),
        "chosen_longer_share": asdict(proportion([float(x == 1) for x in longer])),
        "prefer_the_longer_accuracy": asdict(proportion([(1 + x) / 2 for x in longer])),
        "length_controlled_accuracy": (
            f"measurable on {controlled} held-out pairs" if controlled else NOT_MEASURABLE
        ),
    }


def languages(pairs: Sequence[Pair], wanted: str) -> dict[str, Any]:
    """Languages of the last user turns and replies of some pairs; `?` is text without letters."""
    count = min(len(pairs), LANGUAGE_SAMPLE)
    sample = [pairs[index * len(pairs) // count] for index in range(count)]
    parts = {
        "prompt": [pair.prompt[-1]["content"] for pair in sample],
        "chosen": [pair.chosen for pair in sample],
        "rejected": [pair.rejected for pair in sample],
    }
    result: dict[str, Any] = {"wanted": wanted, "sampled": count, "of": len(pairs)}
    for name, texts in parts.items():
        languages = Counter(detect(text[:LANGUAGE_CHARACTERS], wanted) or "?" for text in texts)
        result[name] = dict(languages.most_common())
    return result


def copied(pairs: Sequence[Pair], train: int) -> dict[str, Any]:
    """How many pairs repeat an earlier one, nearly repeat one, or have two identical replies."""
    prompts = [
        # without the system turn, which all rows may share
        normalise("\n".join(turn["content"] for turn in pair.prompt if turn["role"] != "system"))
        for pair in pairs
    ]
    replies = [(normalise(pair.chosen), normalise(pair.rejected)) for pair in pairs]
    same_prompt = len(prompts) - len(set(prompts))
    near = copies.near_copies(prompts)
    return {
        "same_pair": len(pairs) - len(set(zip(prompts, replies, strict=True))),
        "same_prompt": same_prompt,
        "near_prompt": sum(first != index for index, first in enumerate(near)) - same_prompt,
        "near_prompt_across_the_split": sum(first < train for first in near[train:]),
        "near_rule": copies.NEAR_RULE,
        "identical_replies": sum(chosen == rejected for chosen, rejected in replies),
    }


def overlap(pairs: Sequence[Pair], questions: Sequence[str]) -> dict[str, Any] | None:
    """The pairs whose prompt contains an evaluation question; None if there are no questions."""
    if not questions:
        return None
    users = ["\n".join(user_turns([pair])) for pair in pairs]
    holds_one = copies.holds_question(users, questions)
    where = [pair.where for pair, holds in zip(pairs, holds_one, strict=True) if holds]
    return {
        "questions": len(questions),
        "pairs": len(where),
        "rule": copies.OVERLAP_RULE,
        "rows": where[:10],
    }


def warnings(report: dict[str, Any]) -> Iterator[tuple[str, float, float, str]]:
    """What it is about, what was seen, the threshold and a text, for each rule that the report
    breaks."""
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
    repeats = (exact + near) / kept if kept else 0.0
    if repeats > COPIES:
        yield (
            *("copies", repeats, COPIES),
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
