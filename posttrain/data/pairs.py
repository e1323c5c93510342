"""Rows of a dataset -> problems and preference pairs, with every check on them.

All checks run before a model is loaded. A row that breaks a rule stops the run with its file, row
and column. Rows that are left out instead (too long, a tie, another language) are counted.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.gsm8k import Problem
from eval.preference import Pair
from posttrain.base.errors import DataError, quoted
from posttrain.data.formats import read_pair
from posttrain.data.sources import Row, read_rows
from posttrain.settings import PairData, ProblemColumns, ProblemData, Prompt, Source
from rewards.answer import parse_number

GOLD_MARK = "####"  # GSM8K ends a solution with "#### 72"


def load_problems(data: ProblemData) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and problems to score; the two share no question.

    Raises:
        DataError: a row that breaks a rule, or a question on both sides.
    """
    train = [_problem(row, data.columns) for row in read_rows(data.train)]
    evaluation = load_evaluation(data.eval, data.columns)
    trained_on = {normalise(problem.question) for problem in train}
    for problem in evaluation:
        if normalise(problem.question) in trained_on:
            raise DataError(
                f"{problem.where} is also in {data.train.path}; a score on "
                f"questions that were trained on says nothing ({quoted(problem.question)})"
            )
    return train, evaluation


def load_evaluation(source: Source, columns: ProblemColumns) -> list[Problem]:
    """Problems to score. A question that is there twice is scored once, and that is printed.

    Raises:
        DataError: a row that breaks a rule.
    """
    rows = [_problem(row, columns) for row in read_rows(source)]
    problems = {problem.question: problem for problem in reversed(rows)}
    if len(problems) < len(rows):
        print(f"{source.path}: {len(rows) - len(problems)} repeated questions left out of scoring")
    return [problem for problem in rows if problems.get(problem.question) is problem]


def _problem(row: Row, columns: ProblemColumns) -> Problem:
    question = row.text(columns.question)
    number = row.values.get(columns.answer)
    if isinstance(number, int | float) and not isinstance(number, bool):
        row = Row({**row.values, columns.answer: str(number)}, row.where)
    solution = row.text(columns.answer)
    gold = solution.rpartition(GOLD_MARK)[2].strip()
    if parse_number(gold) is None:
        raise DataError(
            f"{row.where}: column '{columns.answer}' gives no number: expected a number or "
            f"text ending in '{GOLD_MARK} number', found {gold[-60:]!r}"
        )
    return Problem(question=question, answer=gold, where=row.where)


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on and pairs held out, and what became of the other rows."""

    train: list[Pair]
    held_out: list[Pair]
    rows: int
    """Rows read, the dropped ones included."""
    dropped: dict[str, int]
    """Rows left out, by rule."""
    questions: Sequence[str] = ()
    """Evaluation questions to look for in the prompts."""


def load_pair_set(data: PairData, prompt: Prompt) -> PairSet:
    """Pairs on both sides, which share no prompt; rows that a rule leaves out are printed.

    Raises:
        DataError: a row that breaks a rule, or too few pairs to hold any out.
    """
    dropped: Counter[str] = Counter()
    questions = [row.text("question") for set_ in data.check_against for row in read_rows(set_)]
    pairs, rows = _read_pairs(data.train, data, prompt, dropped)
    if data.eval is None:
        train, held_out = hold_out(pairs, data.holdout, data.train.path)
        return PairSet(train, held_out, rows, dict(dropped), questions)
    evaluation, more = _read_pairs(data.eval, data, prompt, dropped)
    trained_on = {prompt_key(pair) for pair in pairs}
    for pair in evaluation:
        if prompt_key(pair) in trained_on:
            raise DataError(f"{pair.where} is also trained on")
    return PairSet(pairs, evaluation, rows + more, dict(dropped), questions)


def load_pairs(data: PairData, prompt: Prompt) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out, as `load_pair_set` finds them."""
    found = load_pair_set(data, prompt)
    return found.train, found.held_out


def _read_pairs(
    source: Source, data: PairData, prompt: Prompt, dropped: Counter[str]
) -> tuple[list[Pair], int]:
    """The pairs of a source and its number of rows; those left out are added to `dropped`."""
    rows = read_rows(source)
    read = [read_pair(row, data, prompt.system) for row in rows]
    pairs = [pair for pair in read if isinstance(pair, Pair)]
    reasons = Counter(reason for reason in read if isinstance(reason, str))
    said = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    if not pairs:
        raise DataError(f"{source.path}: no pair is left of {len(rows)} rows: {said}")
    if reasons:
        print(f"{source.path}: left out {reasons.total()} of {len(rows)} rows: {said}")
    dropped.update(reasons)
    return pairs, len(rows)


def normalise(text: str) -> str:
    """Text without case, punctuation or spacing, so that trivial edits do not hide a copy.

    What stands between two digits stays: 3 + 5 is not 3 - 5, nor 1.5 the same as 15.
    """
    dense = "".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"(?<![0-9])[\W_]|[\W_](?![0-9])", "", dense) or dense


def seen_in_training(problems: Sequence[Problem], trained_on: Iterable[str]) -> list[Problem]:
    """The problems whose question is, but for case, punctuation and spacing, a text trained on."""
    seen = {normalise(text) for text in trained_on}
    return [problem for problem in problems if normalise(problem.question) in seen]


def prompt_key(pair: Pair) -> str:
    """A hash of the prompt's first user turn that is the same on every machine.

    Of the first, so that all branches of a conversation are on one side.
    """
    text = normalise(next(turn["content"] for turn in pair.prompt if turn["role"] == "user"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hold_out(pairs: list[Pair], count: int, where: str) -> tuple[list[Pair], list[Pair]]:
    """Split off at least `count` pairs by the hash of their prompt, whole prompts at a time.

    Adding rows to a dataset moves few of the others to the other side.
    """
    chosen: set[str] = set()
    held = 0
    keys = [prompt_key(pair) for pair in pairs]
    by_key = Counter(keys)
    for key in sorted(by_key):
        if held >= count:
            break
        chosen.add(key)
        held += by_key[key]
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in chosen]
    if not train:
        raise DataError(
            f"{where}: {len(pairs)} pairs leave none to train on after holding out {count}; "
            "lower data.holdout"
        )
    return train, [pair for pair, key in zip(pairs, keys, strict=True) if key in chosen]


def drop_overlong(
    rows: Sequence[Any], lengths: Sequence[int], limit: int, rule: str, what: str
) -> list[Any]:
    """The rows whose length fits `limit` tokens; what becomes of the others is never silent.

    Raises:
        DataError: a row is too long and `rule` is "error", or no row is left.
    """
    long = [number for number, length in enumerate(lengths, start=1) if length > limit]
    if not long:
        return list(rows)
    if rule == "error":
        first = rows[long[0] - 1].where or f"row {long[0]}"
        raise DataError(
            f"{what}: {first} takes {lengths[long[0] - 1]} tokens and {len(long)} of "
            f"{len(rows)} rows are over the limit of {limit}. Raise model.max_seq_length, or set "
            "data.overlong=drop to leave them out"
        )
    if len(long) == len(rows):
        raise DataError(f"{what}: all {len(rows)} rows are over the limit of {limit} tokens")
    print(f"{what}: dropped {len(long)} of {len(rows)} rows over {limit} tokens (data.overlong)")
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
