"""Read rows of a dataset as preference pairs, check them, hold some out, and measure them.

All checks run before a model is loaded. A row that breaks a rule stops the run; the message names
its file, row and column. Rows that are only left out (a tie, another language) are counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.preference import Pair
from eval.replies import is_known
from posttrain.base.errors import DataError
from posttrain.data.formats import languages, read_pair
from posttrain.data.messages import LeftOut, user_turn
from posttrain.data.prompted import divided, kept_rows, with_prompt
from posttrain.data.render import refuse_repeated, render, token_lengths
from posttrain.data.replies import Sampled, read_sampled
from posttrain.data.sources import Row, read_rows
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
    are printed. Raises a DataError for a row that breaks a rule, too few pairs to hold any out, or
    a language that cannot be detected."""
    if data.language is not None and not is_known(data.language):
        raise DataError(
            f"data.language: {data.language!r} cannot be detected in replies; use a code such as "
            f"fr, en or de, and that code in the column '{data.columns.language}'"
        )
    dropped: Counter[str] = Counter()
    questions = [row.text("question") for set_ in data.check_against for row in read_rows(set_)]

    def read(source: Source) -> list[Pair]:
        if data.format == "replies":
            pairs = best_and_worst(read_sampled(source), source.path)
        else:
            pairs, reasons = kept_rows(read_rows(source), read_row, data.unusable, source.path)
            dropped.update(reasons)
        return with_prompt(pairs, prompt, source.path)

    def read_row(row: Row) -> Pair:
        if data.language is not None and data.language not in languages(row, data.columns.language):
            raise LeftOut(f"not in '{data.language}'")
        return read_pair(row, data.format, data.columns, prompt.system)

    train, held_out, validation = divided(read, data)
    rows = len(train) + len(held_out) + len(validation) + dropped.total()
    return PairSet(train, held_out, rows, dict(dropped), questions, validation)


class Lengths(NamedTuple):
    """Tokens of a pair's parts: the rendered prompt, and each reply without its EOS."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        """Prompt, longer reply and its EOS together: this has to fit the limit."""
        return self.prompt + max(self.chosen, self.rejected) + 1


def measure(pairs: Sequence[Pair], tokenizer: Any) -> list[Lengths]:
    """The token lengths of each pair; raises as refuse_repeated()."""
    prompts = [render(tokenizer, pair.conversation) for pair in pairs]
    rows = (
        (pair.where, pair.conversation, prompt, reply)
        for pair, prompt in zip(pairs, prompts, strict=True)
        for reply in (pair.chosen, pair.rejected)
    )
    refuse_repeated(tokenizer, rows)
    parts = [prompts, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    lengths = (token_lengths(tokenizer, texts) for texts in parts)
    return [Lengths(*row) for row in zip(*lengths, strict=True)]


def best_and_worst(groups: Sequence[Sequence[Sampled]], where: str) -> list[Pair]:
    """For each question, the shortest complete reply that earned most and one that earned least,
    complete if there is such. Questions without two such are left out, which is printed; raises a
    DataError where all are."""
    pairs = []
    for group in groups:
        ranked = sorted((r for r in group if r.reply), key=lambda r: (-r.total, len(r.reply)))
        best = next((row for row in ranked if row.complete), None)
        worst = min(ranked, key=lambda r: (r.total, not r.complete), default=None)
        if best is not None and worst is not None and worst.total < best.total:
            prompt = (user_turn(best.question),)
            pairs.append(Pair(prompt, best.reply, worst.reply, where=best.where))
    print(
        f"{where}: {len(pairs)} questions give a pair; {len(groups) - len(pairs)} left out, as "
        "their replies tie or were cut"
    )
    if not pairs:
        raise DataError(f"{where}: no question has replies of different rewards")
    return pairs
