"""Read rows of a dataset as problems with a gold number, and check them."""

from collections.abc import Iterable, Sequence

from eval.gsm8k import Problem
from posttrain.base.errors import DataError, quoted
from posttrain.data.sources import Row, read_rows
from posttrain.data.text import normalise
from posttrain.settings import ProblemColumns, ProblemData, Source
from rewards.answer import parse_number

GOLD_MARK = "####"  # GSM8K ends a solution with "#### 72"


def load_problems(data: ProblemData) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and problems to score. No question is in both.

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
    """Problems to score. A repeated question is scored once; the number of repeats is printed.

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


def seen_in_training(problems: Sequence[Problem], trained_on: Iterable[str]) -> list[Problem]:
    """The problems whose question is one of the texts, apart from case, punctuation and spacing."""
    seen = {normalise(text) for text in trained_on}
    return [problem for problem in problems if normalise(problem.question) in seen]
