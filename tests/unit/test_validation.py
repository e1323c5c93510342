"""Which rows are validated on, and when."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import Demonstration
from eval.stats import Measure
from posttrain.base.errors import DataError
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import for_validation, load_problems
from posttrain.data.prompted import prompt_key
from posttrain.data.text import text_key
from posttrain.run.folder import RunFolder
from posttrain.scoring import demonstrations
from posttrain.train.stop import StopRequest
from posttrain.train.validation import Validation
from tests.helpers import demo_settings


def test_rows_to_validate_on_are_no_test_rows_and_not_trained_on() -> None:
    data = demo_settings("grpo").data
    problems, held_out = load_problems(data)
    train, validation = for_validation(problems, data)
    sides = [{text_key(p.question) for p in side} for side in (train, validation, held_out)]
    assert len(validation) == 100 and len(train) == len(problems) - 100
    with pytest.raises(DataError, match=r"2000 rows leave none .*lower data.validation"):
        for_validation(problems, data.model_copy(update={"validation": 5000}))
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    # More training rows move few of those set aside.
    fewer = for_validation(problems[: len(problems) // 2], data)[1]
    assert len({p.question for p in fewer} & {p.question for p in validation}) > 30

    pairs = demo_settings("dpo")
    with_it = load_pair_set(pairs.data, pairs.prompt)
    without = pairs.data.model_copy(update={"validation": 0})
    plain = load_pair_set(without, pairs.prompt)
    assert plain.held_out == with_it.held_out  # the test pairs stay what they are
    assert len(with_it.validation) == 100 and not plain.validation
    keys = [set(map(prompt_key, side)) for side in (with_it.train, with_it.validation)]
    assert not keys[0] & keys[1] and not keys[1] & set(map(prompt_key, with_it.held_out))
    assert keys[0] | keys[1] == set(map(prompt_key, plain.train))


def validated(path: Path, values: dict[int, float], *overrides: str) -> Validation:
    """A Validation that was given these values, one after the other, by step."""
    run = RunFolder(path / "run")
    run.open(fresh=False)
    left = list(values.values())

    def measure() -> dict[str, Measure]:
        random.random()  # as a reward may
        value = left.pop(0)
        return {"strict": Measure(value, 10, value, value)}

    trainer = SimpleNamespace(add_callback=lambda _: None)
    own, stop = demo_settings("grpo", *overrides), StopRequest(None)
    validation = Validation((measure, "strict"), trainer, own, run, stop)
    for step in values:
        before = random.getstate()
        logged = validation.take(step)
        assert random.getstate() == before
        assert logged["validation/strict"] == values[step] and logged["validation/seconds"] >= 0
    return validation


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.5], True),  # as good is not better
        ([0.5, 0.4, 0.6], False),
        ([0.1, 0.6, 0.5, 0.4], True),
    ],
)
def test_patience(tmp_path: Path, values: list[float], over: bool) -> None:
    by_step = {10 * index: value for index, value in enumerate(values)}
    assert validated(tmp_path, by_step, "run.patience=2").exhausted() is over


def test_when_a_validation_is_due(tmp_path: Path) -> None:
    validation = validated(tmp_path, {0: 0.1, 10: 0.3}, "run.keep=last")
    assert [step for step in range(36) if validation.due(step, 35)] == [20, 30, 35]
    assert validation.due(38, 35)  # a run of more steps resumed with fewer
    validation.begin(9)  # a run that resumes from there
    assert [row.step for row in validation.rows] == [0] and validation.due(10, 35)
    validation.begin(0)  # a run that starts over takes nothing over
    assert validation.rows == [] and validation.due(0, 35)
    assert not validation.exhausted()


@pytest.mark.parametrize(("answer", "by"), [("4", "strict"), ("four", "reply_loss")])
def test_replies_are_validated_by_answers_where_these_are_numbers(answer: str, by: str) -> None:
    own = demo_settings("sft")
    row = Demonstration(({"role": "user", "content": "Two and two?"},), "It is four.", answer)
    assert demonstrations.validator(None, None, [row], own)[1] == by
