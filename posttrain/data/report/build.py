"""What a set of preference pairs will teach, before a run is paid for: the data report.

DPO amplifies whatever separates chosen from rejected, and here that is counted: length, language,
copies, evaluation questions. Pure functions over pairs and a tokenizer.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.language import detect
from eval.preference import Pair
from posttrain.base.files import write_json
from posttrain.data.pairs import PairSet
from posttrain.data.report import copies
from posttrain.data.report.examples import render_examples
from posttrain.data.report.lengths import Lengths, length_bias, tokens
from posttrain.data.report.warnings import warnings
from posttrain.data.text import normalise

LANGUAGE_SAMPLE = 2_000  # rows whose language is identified, evenly spaced
LANGUAGE_CHARACTERS = 500  # of each text, which is ample


def build(
    found: PairSet,
    lengths: Sequence[Sequence[Lengths]],
    tokenizer: Any,
    limit: int,
    language: str = "fr",
) -> dict[str, Any]:
    """The data report, as JSON.

    `lengths` are those of `found.train` and `found.held_out`, and `limit` is in tokens. A pair over
    the limit counts as dropped; all but the token lengths is about the others. `language` is what
    replies should be in.
    """
    pairs, measured = [*found.train, *found.held_out], [*lengths[0], *lengths[1]]
    fits = [length.whole <= limit for length in measured]
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    kept_lengths = [length for length, fit in zip(measured, fits, strict=True) if fit]
    train = sum(fits[: len(found.train)])
    too_long = {f"over {limit} tokens": len(pairs) - len(kept)} if len(kept) < len(pairs) else {}
    report = {
        "rows": {
            "read": found.rows,
            "kept": len(kept),
            "train": train,
            "held_out": len(kept) - train,
            "dropped": {**found.dropped, **too_long},
        },
        "tokens": tokens(measured, limit),
        "length_bias": length_bias(kept_lengths, train),
        "languages": languages(kept, language),
        "copies": copied(kept, train),
        "evaluation_questions": overlap(kept, found.questions),
        "examples": render_examples(kept, [length.whole for length in kept_lengths], tokenizer),
    }
    return {**report, "warnings": warnings(report)}


def write(report: dict[str, Any], run: Path) -> None:
    """Write data/report.json of a run folder."""
    (run / "data").mkdir(exist_ok=True)
    write_json(run / "data" / "report.json", report)


def languages(pairs: Sequence[Pair], wanted: str) -> dict[str, Any]:
    """Languages of an even sample of last user turns and replies; `?` is text with no letters."""
    count = min(len(pairs), LANGUAGE_SAMPLE)
    sample = [pairs[place * len(pairs) // count] for place in range(count)]
    parts = {
        "prompt": [pair.prompt[-1]["content"] for pair in sample],
        "chosen": [pair.chosen for pair in sample],
        "rejected": [pair.rejected for pair in sample],
    }
    found = {
        name: Counter(detect(text[:LANGUAGE_CHARACTERS]) or "?" for text in texts)
        for name, texts in parts.items()
    }
    return {
        "wanted": wanted,
        "sampled": count,
        "of": len(pairs),
        **{name: dict(counter.most_common()) for name, counter in found.items()},
    }


def copied(pairs: Sequence[Pair], train: int) -> dict[str, Any]:
    """Rows that repeat an earlier one, near copies, and pairs whose replies hardly differ."""
    keys = [normalise("\n".join(turn["content"] for turn in _own(pair))) for pair in pairs]
    replies = [(normalise(pair.chosen), normalise(pair.rejected)) for pair in pairs]
    same_prompt = copies.repeats(keys)
    near = copies.near_copies(keys)
    nearly = [
        not same and first != place
        for place, (same, first) in enumerate(zip(same_prompt, near, strict=True))
    ]
    trained_on = set(near[:train])
    return {
        "same_pair": sum(copies.repeats(list(zip(keys, replies, strict=True)))),
        "same_prompt": sum(same_prompt),
        "near_prompt": sum(nearly),
        "near_prompt_across_the_split": sum(first in trained_on for first in near[train:]),
        "near_rule": copies.NEAR_RULE,
        "identical_replies": sum(chosen == rejected for chosen, rejected in replies),
    }


def overlap(pairs: Sequence[Pair], questions: Sequence[str]) -> dict[str, Any] | None:
    """Pairs whose prompt holds an evaluation question; None where none were given."""
    if not questions:
        return None
    users = [
        "\n".join(turn["content"] for turn in pair.prompt if turn["role"] == "user")
        for pair in pairs
    ]
    found = copies.holds_question(users, questions)
    where = [pair.where for pair, held in zip(pairs, found, strict=True) if held]
    return {
        "questions": len(questions),
        "pairs": len(where),
        "rule": copies.OVERLAP_RULE,
        "rows": where[:10],
    }


def _own(pair: Pair) -> list[dict[str, str]]:
    """The prompt's turns without the system turn, which all rows may share."""
    return [turn for turn in pair.prompt if turn["role"] != "system"]
