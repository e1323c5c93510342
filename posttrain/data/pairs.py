"""Read rows of a dataset as preference pairs, check them, and hold some out.

All checks run before a model is loaded. A row that breaks a rule stops the run; the message names
its file, row and column. Rows that are only left out (a tie, another language) are counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval import example_turns
from eval.language import is_known
from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.data.formats import read_pair
from posttrain.data.messages import with_system
from posttrain.data.sources import read_rows
from posttrain.data.split import set_aside, text_key
from posttrain.settings import PairData, Prompt, Source


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on, pairs held out, and how many rows were left out."""

    train: list[Pair]
    held_out: list[Pair]
    rows: int
    """Number of rows read, with the dropped ones."""
    dropped: dict[str, int]
    """Rule -> number of rows that it left out."""
    questions: Sequence[str] = ()
    """Evaluation questions to look for in the prompts."""
    validation: Sequence[Pair] = ()
    """Pairs of the training data to score while training."""


def load_pair_set(data: PairData, prompt: Prompt) -> PairSet:
    """Pairs to train on, to hold out and to validate on. No prompt is in two of them. Left-out rows
    are printed.

    Raises:
        DataError: a row that breaks a rule, too few pairs to hold any out, or a language that
            replies cannot be told to be in.
    """
    if data.language is not None and not is_known(data.language):
        raise DataError(
            f"data.language: replies cannot be told to be in {data.language!r}; use a code such as "
            f"fr, en or de, and that code in the column '{data.columns.language}'"
        )
    dropped: Counter[str] = Counter()
    questions = [row.text("question") for set_ in data.check_against for row in read_rows(set_)]
    pairs, rows = _read_pairs(data.train, data, prompt, dropped)
    where, validation = data.train.path, list[Pair]()
    if data.eval is None:
        train, held_out = hold_out(pairs, data.holdout, where)
    else:
        train = pairs
        held_out, more = _read_pairs(data.eval, data, prompt, dropped)
        rows += more
        trained_on = {prompt_key(pair) for pair in train}
        for pair in held_out:
            if prompt_key(pair) in trained_on:
                raise DataError(f"{pair.where} is also trained on")
    if data.validation:
        train, validation = hold_out(train, data.validation, where, "data.validation")
    return PairSet(train, held_out, rows, dict(dropped), questions, validation)


def load_pairs(data: PairData, prompt: Prompt) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out, of `load_pair_set`."""
    pairs = load_pair_set(data, prompt)
    return pairs.train, pairs.held_out


def _read_pairs(
    source: Source, data: PairData, prompt: Prompt, dropped: Counter[str]
) -> tuple[list[Pair], int]:
    """The pairs of a source and its number of rows. Adds the left-out rows to `dropped`."""
    rows = read_rows(source)
    read = [read_pair(row, data, prompt.system) for row in rows]
    pairs = _with_system([p for p in read if isinstance(p, Pair)], prompt.system, source.path)
    examples = tuple(example_turns(prompt.examples))
    pairs = [replace(pair, examples=examples) for pair in pairs]
    reasons = Counter(reason for reason in read if isinstance(reason, str))
    counts = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    if not pairs:
        raise DataError(f"{source.path}: no pair is left of {len(rows)} rows: {counts}")
    if reasons:
        print(f"{source.path}: left out {reasons.total()} of {len(rows)} rows: {counts}")
    dropped.update(reasons)
    return pairs, len(rows)


def user_turns(pairs: Sequence[Pair]) -> list[str]:
    """The text of every user turn in the prompts."""
    turns = (turn for pair in pairs for turn in pair.prompt)
    return [turn["content"] for turn in turns if turn["role"] == "user"]


def _with_system(pairs: list[Pair], system: str | None, where: str) -> list[Pair]:
    """The pairs with `prompt.system`, which replaces the rows' own system turns unless it is null.
    Prints how many rows have one."""
    own = sum(pair.prompt[0]["role"] == "system" for pair in pairs)
    if own:
        rule = "prompt.system replaces it; null keeps it" if system is not None else "it is used"
        print(f"{where}: {own} of {len(pairs)} rows have a system turn: {rule}")
    if system is None:
        return pairs
    return [replace(pair, prompt=tuple(with_system(pair.prompt, system))) for pair in pairs]


def prompt_key(pair: Pair) -> str:
    """A hash of the prompt's first user turn, the same on every machine.

    Only the first turn counts, so that all branches of a conversation stay together.
    """
    return text_key(next(turn["content"] for turn in pair.prompt if turn["role"] == "user"))


def hold_out(
    pairs: list[Pair], count: int, where: str, setting: str = "data.holdout"
) -> tuple[list[Pair], list[Pair]]:
    """The pairs that stay, and at least `count` pairs held out by the hash of their prompt.

    Raises:
        DataError: none would stay.
    """
    return set_aside(pairs, [prompt_key(pair) for pair in pairs], count, where, setting)
