"""What completes and splits the prompts of pairs and demonstrations."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from eval import Prompted, example_turns
from posttrain.base.errors import DataError
from posttrain.data.messages import LeftOut, UnusableRow, with_system
from posttrain.data.sources import Row
from posttrain.data.text import set_aside, text_key
from posttrain.settings import PairData, Prompt, ReplyData, Source

R = TypeVar("R", bound=Prompted)


def kept_rows(
    rows: Sequence[Row], read: Callable[[Row], R], unusable: str, where: str
) -> tuple[list[R], Counter[str]]:
    """What `read` makes of the rows, and the reasons for leaving out others, whose counts are
    printed. `unusable` is data.unusable. Raises a DataError where a row is malformed, or none is
    left."""
    kept: list[R] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            kept.append(read(row))
        except LeftOut as reason:
            reasons[str(reason)] += 1
        except UnusableRow as error:
            if unusable == "error":
                raise
            reasons[error.why] += 1
    counts = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    if not kept:
        raise DataError(f"{where}: no row is left of {len(rows)}: {counts}")
    if reasons:
        print(f"{where}: left out {reasons.total()} of {len(rows)} rows: {counts}")
    return kept, reasons


def with_prompt(rows: list[R], prompt: Prompt, where: str) -> list[R]:
    """The rows with the worked examples and with `prompt.system`, which replaces their own system
    turns unless it is null. Prints how many rows have one."""
    own = sum(row.prompt[0]["role"] == "system" for row in rows)
    if own:
        rule = "it is used" if prompt.system is None else "prompt.system replaces it; null keeps it"
        print(f"{where}: {own} of {len(rows)} rows have a system turn: {rule}")
    examples = tuple(example_turns(prompt.examples))
    return [
        replace(row, prompt=tuple(with_system(row.prompt, prompt.system)), examples=examples)
        for row in rows
    ]


def user_turns(rows: Sequence[R]) -> list[str]:
    """The text of every user turn in the prompts."""
    turns = (turn for row in rows for turn in row.prompt)
    return [turn["content"] for turn in turns if turn["role"] == "user"]


def prompt_key(row: Prompted) -> str:
    """A hash of the prompt's first user turn alone, the same on every machine: all branches of a
    conversation stay together."""
    return text_key(next(turn["content"] for turn in row.prompt if turn["role"] == "user"))


def divided(
    read: Callable[[Source], list[R]], data: PairData | ReplyData
) -> tuple[list[R], list[R], list[R]]:
    """Rows to train on, to hold out and to validate on. No prompt is in two: raises a DataError
    where a held-out one is also trained on, or none would be left to train on."""
    rows, where = read(data.train), data.train.path
    if data.eval is None:
        rows, held_out = set_aside(rows, prompt_key, data.holdout, where, "data.holdout")
    else:
        held_out = read(data.eval)
        trained_on = set(map(prompt_key, rows))
        for row in held_out:
            if prompt_key(row) in trained_on:
                raise DataError(f"{row.where} is also trained on")
    rows, validation = set_aside(rows, prompt_key, data.validation, where, "data.validation")
    return rows, held_out, validation
