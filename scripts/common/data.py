"""Rows of a dataset -> problems and preference pairs, with every check on them.

All checks run before a model is loaded. A row that breaks a rule stops the run with its file, row
and column; the only rule that may drop rows instead is length, and then they are counted.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from eval import conversation
from eval.gsm8k import Problem
from eval.preference import Pair
from rewards.answer import parse_number
from scripts.common.errors import DataError
from scripts.common.settings import PairData, ProblemColumns, ProblemData, Prompt, Source
from scripts.common.sources import Row, read_rows

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
                f"questions that were trained on says nothing ({problem.question[:60]!r})"
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


def load_pairs(data: PairData, prompt: Prompt) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out; the two share no prompt.

    Raises:
        DataError: a row that breaks a rule, or too few pairs to hold any out.
    """
    pairs = [_pair(row, data, prompt) for row in read_rows(data.train)]
    if data.eval is None:
        return hold_out(pairs, data.holdout, data.train.path)
    evaluation = [_pair(row, data, prompt) for row in read_rows(data.eval)]
    trained_on = {prompt_key(pair) for pair in pairs}
    for pair in evaluation:
        if prompt_key(pair) in trained_on:
            raise DataError(f"{pair.where} is also trained on")
    return pairs, evaluation


def _pair(row: Row, data: PairData, prompt: Prompt) -> Pair:
    columns = data.columns
    user = row.text(columns.prompt)
    chosen, rejected = row.text(columns.chosen), row.text(columns.rejected)
    if chosen == rejected:
        raise DataError(
            f"{row.where}: columns '{columns.chosen}' and '{columns.rejected}' hold the same "
            "text; such a pair teaches nothing, remove it"
        )
    system = prompt.system
    if columns.system is not None:
        own = row.values.get(columns.system, 0)  # 0: no such column, which row.text explains
        if own is not None and (not isinstance(own, str) or own.strip()):
            system = row.text(columns.system)
    return Pair(tuple(conversation(user, system)), chosen, rejected, row.where)


def normalise(text: str) -> str:
    """Text without case, punctuation or spacing, so that trivial edits do not hide a copy.

    What stands between two digits stays: 3 + 5 is not 3 - 5, nor 1.5 the same as 15.
    """
    dense = "".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"(?<![0-9])[\W_]|[\W_](?![0-9])", "", dense) or dense


def prompt_key(pair: Pair) -> str:
    """A hash of the pair's user turn that is the same on every machine."""
    text = normalise(pair.prompt[-1]["content"])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hold_out(pairs: list[Pair], count: int, where: str) -> tuple[list[Pair], list[Pair]]:
    """Split off at least `count` pairs by the hash of their prompt, whole prompts at a time.

    Adding rows to a dataset moves few of the others to the other side.
    """
    chosen: set[str] = set()
    held = 0
    by_key: dict[str, int] = {}
    for pair in pairs:
        key = prompt_key(pair)
        by_key[key] = by_key.get(key, 0) + 1
    for key in sorted(by_key):
        if held >= count:
            break
        chosen.add(key)
        held += by_key[key]
    train = [pair for pair in pairs if prompt_key(pair) not in chosen]
    if not train:
        raise DataError(
            f"{where}: {len(pairs)} pairs leave none to train on after holding out {count}; "
            "lower data.holdout"
        )
    return train, [pair for pair in pairs if prompt_key(pair) in chosen]


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


def fingerprint(values: Sequence[Any]) -> str:
    """SHA-256 over rows, to tell whether two runs saw the same data."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode("utf-8"))
        digest.update(b"\n")
    return digest.hexdigest()
