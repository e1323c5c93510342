"""Read rows of a dataset as problems with a gold number or text, and check them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from eval.gsm8k import Problem
from posttrain.base.errors import DataError, first_line, quoted
from posttrain.data.replies import pass_rates
from posttrain.data.sources import Row, read_rows
from posttrain.data.text import normalise, set_aside, text_key
from posttrain.settings import ProblemColumns, ProblemData, Source
from rewards.answer import CLOSE, OPEN, extract_tagged, parse_number

GOLD_MARK = "####"  # GSM8K ends a solution with "#### 72"
Answers = Literal["number", "text"]  # see data.answers
# What a reward gets under these names is the scripts' or trl's; trl would take images for inputs.
TAKEN = {
    *("question", "answer", "prompt", "prompts", "image", "images"),
    *("completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
}

# A minus is one before a number or a letter alone; other hyphens and dashes are punctuation.
_OPERATORS = re.compile(r"[+×÷/^<>]|(?<![\w−-])[-−](?=\s*(?:[0-9]|[a-zA-Z]\b))")


def load_problems(data: ProblemData) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, with the same columns in every row, as a trainer needs them, and
    problems to score. Raises a DataError for a row that breaks a rule, or a question on both
    sides."""
    rows = read_rows(data.train)
    own = {data.columns.question, data.columns.answer}
    if taken := sorted(({name for row in rows for name in row.values} & TAKEN) - own):
        print(f"{data.train.path}: columns that rewards cannot read by their name: {taken}")
    train = _same_columns([_problem(row, data.columns, data.answers) for row in rows])
    evaluation = load_evaluation(data.eval, data.columns, data.answers)
    _refuse_shared(evaluation, (problem.question for problem in train), data.train.path)
    return train, evaluation


def load_scored_problems(source: Source | None, trained_on: Iterable[str]) -> list[Problem]:
    """Problems to score before and after training on other rows; none without a source. Raises a
    DataError for a row that breaks a rule, or a question that is trained on."""
    if source is None:
        return []
    problems = load_evaluation(source, ProblemColumns())
    _refuse_shared(problems, trained_on, "the training data")
    return problems


def _refuse_shared(problems: Sequence[Problem], trained_on: Iterable[str], where: str) -> None:
    if shared := seen_in_training(problems, trained_on):
        raise DataError(
            f"{shared[0].where} is also in {where}, as are {len(shared)} of {len(problems)} "
            f"questions ({quoted(shared[0].question)}); a score on such questions means nothing"
        )


def within_pass_rate(problems: Sequence[Problem], data: ProblemData) -> list[Problem]:
    """The problems that `data.pass_rate` keeps: those that the policy solves sometimes. Prints how
    many it leaves out, and why; problems without sampled replies are kept. Raises a DataError where
    none is left."""
    rule = data.pass_rate
    if rule is None:
        return list(problems)
    rates = pass_rates(rule)
    rated = [(problem, rates.get(problem.question)) for problem in problems]
    kept = [each for each, rate in rated if rate is None or rule.low <= rate <= rule.high]
    known = [rate for _, rate in rated if rate is not None]
    seldom = sum(rate < rule.low for rate in known)
    often = sum(rate > rule.high for rate in known)
    print(
        f"data.pass_rate: {len(kept)} of {len(problems)} problems kept, {seldom} solved in fewer "
        f"than {rule.low:.0%} of their replies and {often} in more than {rule.high:.0%} left out, "
        f"{len(rated) - len(known)} without replies"
    )
    if not kept:
        raise DataError(f"{rule.replies}: data.pass_rate leaves no problem to train on; widen it")
    return kept


def for_validation(
    problems: Sequence[Problem], data: ProblemData
) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and `data.validation` of them to score while training instead, a
    repeated question once; raises as set_aside()."""
    where = data.train.path
    train, rest = set_aside(
        problems, lambda p: text_key(p.question), data.validation, where, "data.validation"
    )
    return train, without_repeats(rest, where)


def load_evaluation(
    source: Source, columns: ProblemColumns, answers: Answers = "number"
) -> list[Problem]:
    """Problems to score, a repeated question once; the number of repeats is printed. Where answers
    are text, rewards read the columns: then they are the same in every row. Raises a DataError for
    a row that breaks a rule."""
    problems = [_problem(row, columns, answers) for row in read_rows(source)]
    problems = without_repeats(problems, source.path)
    return _same_columns(problems) if answers == "text" else problems


def without_repeats(problems: Sequence[Problem], where: str) -> list[Problem]:
    """The first problem with each question; prints how many of those from `where` it leaves out."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.question, problem)
    if repeated := len(problems) - len(first):
        print(f"{where}: {repeated} repeated questions left out of scoring")
    return [*first.values()]


def _problem(row: Row, columns: ProblemColumns, answers: Answers) -> Problem:
    question = row.text(columns.question)
    number = row.values.get(columns.answer)
    if isinstance(number, int | float | Decimal) and not isinstance(number, bool):
        written = f"{Decimal(str(number)):f}"  # 0.00005 is 5e-05 to str()
        row = Row({**row.values, columns.answer: written}, row.where)
    solution = row.text(columns.answer)
    gold = solution if answers == "text" else gold_number(solution, row, columns.answer)
    no_columns = {columns.question, columns.answer, *TAKEN}
    others = {name: value for name, value in row.values.items() if name not in no_columns}
    return Problem(question, gold, row.where, others)


def gold_number(solution: str, row: Row, column: str) -> str:
    """The NUMBER that a solution in a column ends in; raises a DataError where there is none."""
    written = solution.rpartition(GOLD_MARK)[2].strip()
    if parse_number(written) is not None:
        return written
    value = extract_tagged(f"{OPEN}{written}{CLOSE}")  # as in a reply, `5%` and `$5.` are 5
    if value is None:
        raise DataError(
            f"{row.where}: column '{column}' gives no number: expected a number or "
            f"text ending in '{GOLD_MARK} number', got {written[-60:]!r}. Beside a number only "
            "$ € £ % and a final full stop are ignored; take units and words away. Answers that "
            "are text need a reward of your own: data.answers=text, or --rewards of evaluate "
            "(docs/rewards.md)"
        )
    return f"{value:f}"


def _same_columns(problems: list[Problem]) -> list[Problem]:
    """Every column in every problem, as a trainer's table of rows would give it back; prints which
    are left out because no table can hold them, such as numbers in one row and text in the next."""
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    if not names:
        return problems
    import pyarrow

    table: dict[str, list[Any]] = {}
    for name in names:
        values = [problem.columns.get(name) for problem in problems]
        try:
            table[name] = pyarrow.array(values).to_pylist()
        except (pyarrow.ArrowException, OverflowError) as error:
            print(f"column '{name}' is left out, so no reward can read it: {first_line(error)}")
    return [
        replace(problem, columns={name: values[index] for name, values in table.items()})
        for index, problem in enumerate(problems)
    ]


def seen_in_training(problems: Sequence[Problem], trained_on: Iterable[str]) -> list[Problem]:
    """The problems whose question is one of the texts, apart from case, punctuation and spacing,
    but with the same operators: x + 3 = 7 is not x - 3 = 7."""

    def key(text: str) -> tuple[str, ...]:
        return normalise(text), *_OPERATORS.findall(text)

    seen = set(map(key, trained_on))
    return [problem for problem in problems if key(problem.question) in seen]
