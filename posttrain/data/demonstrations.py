"""Read rows of a dataset as demonstrations for SFT: a prompt and the reply to learn."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval import Demonstration, Message
from posttrain.base.errors import DataError
from posttrain.data.formats import check_columns, read_pair, with_own_system
from posttrain.data.messages import EMPTY_REPLY, UnusableRow, exchange, user_turn
from posttrain.data.problems import GOLD_MARK, gold_number
from posttrain.data.prompted import divided, kept_rows, with_prompt
from posttrain.data.replies import Sampled, read_sampled
from posttrain.data.sources import Row, read_rows
from posttrain.settings import Prompt, ReplyData, Source
from posttrain.settings.data import Keep, ReplyColumns
from rewards.answer import CLOSE, OPEN

CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations, as in 48/2 = <<48/2=24>>24
SOLUTIONS_WARNING = (
    "warning: data.format: solutions trains on solutions that the model would not write itself, "
    "which made a 0.5B worse on GSM8K (36.2% against 46 to 50% untrained); its own right answers "
    "did not (data.format: replies, docs/stages.md)"
)


@dataclass(frozen=True)
class DemonstrationSet:
    """Rows to train on, held out and to validate on; no prompt is in two of them."""

    train: list[Demonstration]
    held_out: list[Demonstration]
    validation: list[Demonstration]


def load_demonstrations(data: ReplyData, prompt: Prompt) -> DemonstrationSet:
    """The rows of a config. What is left out is printed. Raises a DataError for a row that breaks a
    rule, or too few to hold any out."""
    if data.format == "solutions":
        print(SOLUTIONS_WARNING)

    def read(source: Source) -> list[Demonstration]:
        if data.format == "replies":
            kept = best_replies(read_sampled(source), data.keep, source.path)
        else:
            kept, _ = kept_rows(read_rows(source), read_row, data.unusable, source.path)
        return with_prompt(kept, prompt, source.path)

    def read_row(row: Row) -> Demonstration:
        if data.format == "chosen":
            pair = read_pair(row, data.pair_format, data.columns, prompt.system)
            return _checked(pair.prompt, pair.chosen, row)
        check_columns(row, data.columns)
        return with_own_system(READERS[data.format](row, data.columns), row, data.columns)

    return DemonstrationSet(*divided(read, data))


def _from_columns(row: Row, columns: ReplyColumns) -> Demonstration:
    reply = row.text(columns.reply, may_be_empty=True)
    return _checked((user_turn(row.text(columns.prompt)),), reply, row)


def _from_messages(row: Row, columns: ReplyColumns) -> Demonstration:
    opening, reply = exchange(row, columns.messages, ignored=columns.ignored)
    return _checked(tuple(opening), reply.text, row)


def _from_solutions(row: Row, columns: ReplyColumns) -> Demonstration:
    column = columns.answer
    solution = row.text(column, may_be_empty=True)
    steps, mark, _ = CALCULATOR.sub("", solution).rpartition(GOLD_MARK)
    if not mark:
        raise DataError(
            f"{row.where}: column '{column}' should end in '{GOLD_MARK} number'; read rows of "
            "another form with data.format: columns"
        )
    answer = gold_number(solution, row, column)
    reply = f"{steps.strip()}\n{OPEN}{answer}{CLOSE}"
    return _checked((user_turn(row.text(columns.question)),), reply, row, answer)


READERS = {"columns": _from_columns, "messages": _from_messages, "solutions": _from_solutions}


def _checked(
    prompt: tuple[Message, ...], reply: str, row: Row, answer: str | None = None
) -> Demonstration:
    """Raises a DataError where the prompt does not end in a user turn, or the reply is empty."""
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError(f"{row.where}: the prompt should end in a turn of the user")
    if not reply:
        raise UnusableRow(f"{row.where}: there is no reply to learn", EMPTY_REPLY)
    return Demonstration(prompt, reply, answer, where=row.where)


def best_replies(
    groups: Iterable[Sequence[Sampled]], keep: Keep, where: str
) -> list[Demonstration]:
    """The shortest different replies to each question that earned enough. Prints what was left out;
    raises a DataError where none did."""
    kept: list[Demonstration] = []
    left: Counter[str] = Counter()
    total = questions = 0
    for group in groups:
        total += len(group)
        earned = [row for row in group if row.total >= keep.reward and row.complete and row.reply]
        different = {row.reply: row for row in sorted(earned, key=lambda r: len(r.reply))}
        best = list(different.values())[: keep.per_question]
        kept += [
            Demonstration((user_turn(row.question),), row.reply, row.answer, where=row.where)
            for row in best
        ]
        questions += bool(best)
        left[f"earned below {keep.reward:g} or were cut"] += len(group) - len(earned)
        left["repeat another"] += len(earned) - len(different)
        left[f"are beyond {keep.per_question} of a question"] += len(different) - len(best)
    why = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
    print(f"{where}: kept {len(kept)} of {total} replies, to {questions} questions; {why or 'all'}")
    if not kept:
        raise DataError(
            f"{where}: no reply earned {keep.reward:g}; sample more (--samples), with worked "
            "examples (--examples), or lower data.keep.reward"
        )
    return kept
