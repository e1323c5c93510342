"""Read rows of a dataset as demonstrations for SFT: a prompt and the reply to learn."""

import re
from dataclasses import dataclass

from eval import Message, PromptFormat, conversation
from eval.demonstration import Demonstration
from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.data import messages
from posttrain.data.formats import check_columns, read_pair, with_own_system
from posttrain.data.messages import UnusableRow
from posttrain.data.problems import GOLD_MARK, gold_number
from posttrain.data.prompted import divided, kept_rows, with_prompt
from posttrain.data.replies import best_replies, read_sampled
from posttrain.data.sources import Row, read_rows
from posttrain.settings import PairColumns, PairData, Prompt, ReplyData, Source
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
    """The rows of a config. What is left out is printed.

    Raises:
        DataError: a row that breaks a rule, or too few to hold any out.
    """
    if data.format == "solutions":
        print(SOLUTIONS_WARNING)

    def read(source: Source) -> list[Demonstration]:
        return with_prompt(_read(source, data, prompt), prompt, source.path)

    return DemonstrationSet(*divided(read, data.train, data.eval, data.holdout, data.validation))


def _read(source: Source, data: ReplyData, prompt: Prompt) -> list[Demonstration]:
    if data.format == "replies":
        sampled = best_replies(read_sampled(source), data.keep, source.path)
        plain = PromptFormat()
        return [
            Demonstration(
                tuple(conversation(row.question, plain)), row.reply, row.answer, row.where
            )
            for row in sampled
        ]
    rows = read_rows(source)
    kept, _ = kept_rows([_demonstration(row, data, prompt) for row in rows], source.path)
    return kept


def _demonstration(row: Row, data: ReplyData, prompt: Prompt) -> Demonstration | str:
    """The row's demonstration, or why it is left out."""
    try:
        return _read_row(row, data, prompt)
    except UnusableRow as error:
        if data.unusable == "error":
            raise
        return error.why


def _read_row(row: Row, data: ReplyData, prompt: Prompt) -> Demonstration | str:
    columns = data.columns
    if data.format == "chosen":
        names = {name: getattr(columns, name) for name in PairColumns.model_fields}
        pairs = PairData(
            train=data.train,
            format=data.pair_format,
            columns=PairColumns(**names),
            unusable=data.unusable,
        )
        pair = read_pair(row, pairs, prompt.system)
        return _checked(pair.prompt, pair.chosen, row) if isinstance(pair, Pair) else pair
    check_columns(row, data)
    if data.format == "messages":
        turns = messages.turns(row, columns.messages, ignored=columns.ignored)
        opening, reply = messages.exchange(turns, columns.messages)
        read = _checked(tuple(opening), reply.text, row)
        return with_own_system(read, row, data, prompt.system)
    names_of = {
        "columns": (columns.prompt, columns.reply),
        "solutions": (columns.question, columns.answer),
    }
    question, solution = names_of[data.format]
    text, answer = row.text(solution, may_be_empty=True), None
    if data.format == "solutions":
        steps, mark, _ = CALCULATOR.sub("", text).rpartition(GOLD_MARK)
        if not mark:
            raise DataError(
                f"{row.where}: column '{solution}' should end in '{GOLD_MARK} number'; read rows "
                "of another form with data.format: columns"
            )
        answer = gold_number(text, row, solution)
        text = f"{steps.strip()}\n{OPEN}{answer}{CLOSE}"
    read = _checked(tuple(conversation(row.text(question), PromptFormat())), text, row, answer)
    return with_own_system(read, row, data, prompt.system)


def _checked(
    prompt: tuple[Message, ...], reply: str, row: Row, answer: str | None = None
) -> Demonstration:
    """Raises a DataError where the prompt does not end in a user turn, or the reply is empty."""
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError(f"{row.where}: the prompt should end in a turn of the user")
    if not reply:
        raise UnusableRow(f"{row.where}: there is no reply to learn", messages.EMPTY_REPLY)
    return Demonstration(prompt, reply, answer, row.where)
