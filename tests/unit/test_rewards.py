"""The two rewards and the registry; attempts to cheat the rewards are in answer_cases.tsv."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rewards import RewardError, check_reward, describe, resolve
from rewards.gsm8k import correctness_reward, format_reward
from tests.unit.conftest import write_file

ROW = {"prompt": [{"role": "user", "content": "48 + 24?"}], "answer": "72", "question": "48 + 24?"}


def score(text: object, gold: object = "72") -> tuple[float | None, float | None]:
    (form,) = format_reward([text], answer=[gold])
    (right,) = correctness_reward([text], answer=[gold])
    return form, right


@pytest.mark.parametrize(
    ("text", "form", "right"),
    [
        ("48 + 24 = 72\n<answer>72</answer>", 1.0, 2.0),
        ("48 + 24 = 73\n<answer>73</answer>", 1.0, 0.0),
        ("It is <answer>72</answer>.", 0.0, 2.0),
        ("<answer>-72</answer>", 1.0, 0.0),
        ("<answer>72 $.</answer>", 0.0, 2.0),
        ("<answer>71</answer>\n<answer>72</answer>", 1.0, 0.0),
    ],
)
def test_the_two_rewards_are_independent(text: str, form: float, right: float) -> None:
    assert score(text) == (form, right)


@pytest.mark.parametrize("gold", ["1234", "1,234", "1 234", "1\u202f234", "1234.00", "+1234"])
def test_gold_and_answer_may_be_written_differently(gold: str) -> None:
    for written in ("1234", "1,234", "1 234", "1\u00a0234,0", "$1,234.00"):
        assert score(f"<answer>{written}</answer>", gold)[1] == 2.0


@pytest.mark.parametrize("gold", ["", "1,234.", "1 234,", "6*7", "#### 72", " 72", "$72", None, 72])
def test_a_gold_that_is_no_number_cannot_be_scored(gold: object) -> None:
    for text in ("<answer>72</answer>", "", str(gold), f"<answer>{gold}</answer>"):
        assert correctness_reward([text], answer=[gold]) == [None]


def test_each_completion_meets_its_own_gold() -> None:
    completions = [f"<answer>{n}</answer>" for n in (1, 2, 3)]
    assert correctness_reward(completions, answer=["1", "3", "3"]) == [2.0, 0.0, 2.0]
    assert format_reward(completions) == [1.0, 1.0, 1.0]
    assert format_reward([]) == correctness_reward([], answer=[]) == []
    assert correctness_reward(completions, answer=["1"]) == [2.0, None, None]  # without a gold


def message(content: object, role: str = "assistant") -> dict[str, object]:
    return {"role": role, "content": content}


GOOD, BAD = "<answer>72</answer>", "<answer>73</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ([message(GOOD)], (1.0, 2.0)),
        ([{"content": GOOD}], (1.0, 2.0)),
        ([message(BAD), message("a result", "tool"), message(GOOD)], (1.0, 2.0)),
        ([message(GOOD), message(BAD)], (1.0, 0.0)),
        ([message(GOOD), message(GOOD, "user")], (1.0, 2.0)),
        ([message(GOOD, "user")], (0.0, 0.0)),
        ([message(None)], (0.0, 0.0)),
        ([message([{"type": "text", "text": GOOD}])], (0.0, 0.0)),
        ([], (0.0, 0.0)),
        (None, (0.0, 0.0)),
        (72, (0.0, 0.0)),
        ({"role": "assistant", "content": GOOD}, (0.0, 0.0)),
    ],
)
def test_forms_of_completion(completion: object, expected: tuple[float, float]) -> None:
    assert score(completion) == expected


CUSTOM = '''
"""Rewards of a user's own."""
from dataclasses import dataclass

@dataclass
class Limit:
    characters: int = 20

LIMIT = Limit()

def short_reward(completions, **columns):
    return [float(len(str(c)) < LIMIT.characters) for c in completions]
'''


@pytest.mark.parametrize("folder", ["", "a:b/"])
def test_a_reward_from_a_file(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / folder / "mine.py", CUSTOM)
    monkeypatch.chdir(tmp_path)
    for spec in (f"{tmp_path}/{folder}mine.py:short_reward", f"{folder}mine.py:short_reward"):
        reward = resolve(spec)
        assert reward.__name__ == "short_reward"
        assert reward(completions=["a", "a" * 50]) == [1.0, 0.0]


def test_files_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    for folder, value in (("a", 1.0), ("b", 2.0)):
        write_file(tmp_path / folder / "mine.py", f"def f(completions, **c): return [{value}]")
    rewards = [resolve(f"{tmp_path}/{folder}/mine.py:f") for folder in ("a", "b")]
    assert [reward([""]) for reward in rewards] == [[1.0], [2.0]]
    for reward in rewards:  # each is found where pickle looks for it
        assert sys.modules[reward.__module__].f is reward


def test_a_reward_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "package_for_test" / "mine.py", CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package_for_test.mine:short_reward")(completions=["a"]) == [1.0]
    assert resolve("rewards.gsm8k:format_reward") is format_reward


@pytest.mark.parametrize(
    ("spec", "output"),
    [
        ("formt", ["formt", "did you mean 'format'?"]),
        ("zzz", ["registered: correctness, format", "path/to/file.py:function"]),
        ("mine.py", ["path/to/file.py:function"]),
        ("rewards.gsm8k:", ["path/to/file.py:function"]),
        ("absent.py:f", ["no reward file", "absent.py"]),
        ("folder/absent:f", ["no reward file"]),
        ("~nosuchuser/x.py:f", ["no reward file"]),
        (f"{'x' * 300}.py:f", ["no reward file"]),
        (".:f", ["failed to import"]),
        ("no_such_package:f", ["no_such_package", "ModuleNotFoundError"]),
        ("rewards.gsm8k:formatreward", ["no function", "did you mean 'format_reward'?"]),
        ("rewards.gsm8k:FORMAT_REWARD", ["is a float, not a function"]),
    ],
)
def test_what_cannot_be_resolved_is_explained(spec: str, output: list[str]) -> None:
    with pytest.raises(RewardError) as caught:
        resolve(spec)
    for words in output:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("broken.py", "def f(:", r"broken\.py failed to load: Syntax"),
        ("broken.py", "1 / 0", r"broken\.py failed to load: Zero"),
        ("rewards.txt", "x", "not a Python file"),
    ],
)
def test_a_file_that_does_not_load(name: str, source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(source)
    with pytest.raises(RewardError, match=message):
        resolve(f"{tmp_path / name}:f")


def test_the_sample_has_the_form_of_the_run() -> None:
    assert check_reward("format", format_reward, ROW) == [0.0, 1.0, 0.0]
    right = check_reward("correctness", correctness_reward, ROW)
    assert describe("correctness", right) == "correctness: 0 to 2 on 3 sample completions"
    none = check_reward("correctness", correctness_reward, {**ROW, "answer": "unknown"})
    assert describe("c", none) == "c: nothing on 3 sample completions, 3 not scored"
    seen: list[dict[str, object]] = []

    def reward(**keywords: object) -> list[float]:
        seen.append(keywords)
        return [0.5, 1, 1.5]

    own = {"completion": "72", "completion_ids": [7]}  # columns that trl gives to no reward
    assert check_reward("mine", reward, {**ROW, **own}) == [0.5, 1.0, 1.5]
    check_reward("mine", reward, {"prompt": "48 + 24?", "answer": "72"})
    messages, strings = seen
    assert messages["prompts"] == [ROW["prompt"]] * 3
    assert messages["answer"] == ["72"] * 3
    assert messages["question"] == ["48 + 24?"] * 3
    assert {"completion_ids", "trainer_state", "log_extra", "log_metric"} <= set(messages)
    assert not {"prompt", "completion"} & set(messages) and messages["completion_ids"] == [[0]] * 3
    assert messages["completions"] == [[message(text)] for text in strings["completions"]]  # type: ignore[attr-defined]


async def late(completions: list[object], **columns: object) -> list[float]:
    return [0.0] * len(completions)


def raises(completions: object, **columns: object) -> list[float]:
    raise KeyError("solution")


@pytest.mark.parametrize(
    ("reward", "output"),
    [
        (late, "asynchronous"),
        (lambda prompts, completions: [0.0] * 3, r"\*\*columns"),
        (lambda completions, solution, **columns: [0.0] * 3, "solution"),
        (raises, r"raised KeyError: 'solution' \(.*test_rewards\.py, line \d+\)"),
        (lambda **k: None, "returned None, not a list"),
        (lambda **k: 1.0, "returned a float, not a list"),
        (lambda **k: [1.0], "returned 1 value for 3 completions"),
        (lambda **k: [1.0] * 4, "returned 4 values for 3 completions"),
        (lambda **k: [1.0, "1", 0.0], r"returned '1' \(a str\) for completion 2, which begins 'I"),
        (lambda **k: [np.zeros(2), 0.0, 0.0], r"\(a ndarray\) for completion 1"),
        (lambda **k: [0.0, 0.0, float("-inf")], "returned -inf .a float. for completion 3"),
    ],
)
def test_a_reward_that_breaks_the_contract_is_refused(
    reward: Callable[..., list[float | None]], output: str
) -> None:
    with pytest.raises(RewardError, match=output) as caught:
        check_reward("mine", reward, ROW)
    assert "'mine'" in str(caught.value)


def test_any_kind_of_number_counts_on_texts_of_ones_own() -> None:
    class Scalar:
        """A tensor of one element, as far as Python's float() is concerned."""

        def __float__(self) -> float:
            return 0.25

    values = [np.float32(0.5), True, np.int64(2), Scalar(), math.nan, np.float64("nan"), None]

    def reward(completions: list[list[dict[str, str]]], **_: object) -> object:
        return [values[int(turns[-1]["content"])] for turns in completions]

    result = check_reward("mine", reward, ROW, [*"0123456"])  # type: ignore[arg-type]
    assert result == [0.5, 1.0, 2.0, 0.25, None, None, None]
    assert {type(value) for value in result} == {float, type(None)}
