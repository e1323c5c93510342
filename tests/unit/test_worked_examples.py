"""prompt.examples: turns before the question, wherever a prompt is rendered; and a cold start."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, conversation
from eval.gsm8k import Problem, score_reply
from eval.rewarded import RewardedReply
from posttrain.base.errors import ConfigError, DataError
from posttrain.chat.source import find
from posttrain.data.demonstrations import load_demonstrations
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import for_validation, load_problems
from posttrain.data.prompted import user_turns
from posttrain.data.text import check_examples
from posttrain.export.texts import gate_texts
from posttrain.report.model_card import snippets
from posttrain.run.folder import RunFolder
from posttrain.run.results import Exported
from posttrain.scoring import evaluation
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from posttrain.train.health import cold_start_note
from scripts import dpo, evaluate, grpo, sft
from tests.helpers import ROOT, Capsys, demo_settings, write_rows
from tests.runs import grpo_run
from tests.unit.conftest import make_config

QUESTION, ANSWER = "Anna has 2 pens. She buys 3.", "2 + 3 = 5.\n<answer>5</answer>"
EXAMPLES = f"prompt.examples={json.dumps([{'question': QUESTION, 'answer': ANSWER}])}"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def one_example(folder: Path, question: str = QUESTION) -> Path:
    return write_rows(folder / "examples.jsonl", {"question": question, "answer": ANSWER})


def roles(turns: Any) -> list[str]:
    return [turn["role"][0] for turn in turns]


def test_a_file_gives_what_a_list_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = one_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    for given in (str(file), file.name):
        of_file = demo_settings("grpo", f"prompt.examples={given}")
        assert of_file == demo_settings("grpo", EXAMPLES)
    kept = of_file.model_dump(mode="json")["prompt"]["examples"]  # what config.yaml holds
    assert kept == [{"question": QUESTION, "answer": ANSWER}]
    turns = conversation("4 + 4?", of_file.prompt)
    assert roles(turns) == ["s", "u", "a", "u"] and turns[1:3] == TURNS
    assert turns[-1]["content"] == "4 + 4?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": "a"', "FILE: line 2 is not a JSON object"),
        ("\n", "FILE is empty; write a question and an answer on each line"),
        (None, "there is no file 'FILE'"),
        ('{"question": "a", "answer": "b"}\n{"question": 4}', ".1.question: should be text, got 4"),
        ('{"question": "a", "answer": "b"}\n{"question": 4}', ".1.answer: missing"),
    ],
)
def test_a_file_that_cannot_be_read(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"^command line: prompt\.examples") as caught:
        demo_settings("sft", f"prompt.examples={file}")
    assert message.replace("FILE", str(file)) in str(caught.value)
    assert str(caught.value).count("\n") == message.startswith(".1")  # a line for each mistake


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_rows_have_them_after_their_system_turn(method: str) -> None:
    own = demo_settings(method, EXAMPLES)
    load: Any = load_demonstrations if method == "sft" else load_pair_set
    result = load(own.data, own.prompt)
    for row in (result.train[0], result.held_out[0], result.validation[0]):
        turns = row.conversation
        expected = ["s", "u", "a", "u"] if own.prompt.system else ["u", "a", "u"]
        assert roles(turns) == expected and turns[-3:-1] == TURNS
        assert QUESTION not in user_turns([row])  # they are not the row's own


@pytest.mark.parametrize("script", [sft, dpo, grpo], ids=lambda script: script.__name__)
@pytest.mark.parametrize("side", ["train", "held_out", "validation"])
def test_a_question_of_the_data_is_no_example(script: Any, side: str, tmp_path: Path) -> None:
    """It would give its answer away. Said before anything is loaded."""
    method = script.__name__.rpartition(".")[2]
    own = demo_settings(method)
    if method == "grpo":
        train, held_out = load_problems(own.data)
        problems = dict(zip(("train", "validation"), for_validation(train, own.data), strict=True))
        question = (problems | {"held_out": held_out})[side][0].question
    else:
        load: Any = load_demonstrations if method == "sft" else load_pair_set
        question = user_turns(getattr(load(own.data, own.prompt), side))[0]
    file = one_example(tmp_path, f"  {question.upper()}")
    config = str(ROOT / "configs" / f"{method}_demo.yaml")
    command = ["--config", config, "--output", str(tmp_path / "run"), f"prompt.examples={file}"]
    with pytest.raises(DataError, match=r"prompt\.examples: example 1 is a question of the data"):
        script.main([*command, "--dry-run"])
    check_examples(demo_settings("grpo", EXAMPLES).prompt.examples, ["Anna has 3 pens."])


def test_a_run_with_other_examples_is_another_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open(fresh=False)
    run.describe(demo_settings("grpo", EXAMPLES), {})
    assert run.changed(demo_settings("grpo", f"prompt.examples={one_example(tmp_path)}")) == []
    (difference,) = run.changed(demo_settings("grpo", EXAMPLES.replace("buys", "finds")))
    assert "prompt.examples" in difference
    assert load_settings(GRPOSettings, run.path / "config.yaml").prompt.examples[0].answer == ANSWER


def test_what_reads_a_run_has_its_examples(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "run")
    RunFolder(run).describe(demo_settings("grpo", EXAMPLES), {})
    make_config(run / "adapter")
    source = find(str(run))
    assert conversation("?", source.prompt)[1:3] == TURNS
    for turns in gate_texts(source.run):
        assert turns[1:3] == TURNS and roles(turns) == ["s", "u", "a", "u"]
    code = snippets(source.run, {"gguf:q8_0": Exported("m.gguf")}, None)
    assert json.dumps(TURNS[0]) in code[0].code and json.dumps(TURNS[1]) in code[0].code
    assert "# without the worked examples of training" in code[1].code


def test_an_evaluation_takes_problems_and_prompt_of_a_config(
    tmp_path: Path, capsys: Capsys
) -> None:
    """Its training problems are without those that it validates on, which a run never trains on."""
    config = evaluation.config_of("unused", "eval", ROOT / "configs" / "grpo_demo.yaml")
    file = str(one_example(tmp_path))

    def prompt(examples: Any) -> Any:
        return evaluation.prompt_of(config, "en", text=False, examples=examples)

    own = demo_settings("grpo")
    train, held_out = load_problems(own.data)
    training, validation = for_validation(train, own.data)
    assert evaluation.load_problems("train", config) == training and validation
    assert evaluation.load_problems("train", config, limit=3) == training[:3]
    assert evaluation.load_problems("eval", config) == held_out
    assert conversation("?", prompt(file))[1:3] == TURNS
    assert prompt(file).system == own.prompt.system and prompt([]).examples == []
    with pytest.raises(ConfigError, match=r"^--examples: examples: there is no file"):
        prompt("nowhere.jsonl")
    with pytest.raises(ConfigError, match="name the config whose problems these are with --config"):
        evaluate.main(["--model", "assets/demo_model", "--data", "train"])


def test_an_evaluation_of_a_run_has_its_examples() -> None:
    """But for a DPO run, whose prompt does not request a number."""
    for method, count in (("sft", 1), ("grpo", 1), ("dpo", 0)):
        config = demo_settings(method, EXAMPLES).model_dump(mode="json")
        assert len(evaluation.prompt_of(config, "en", text=False).examples) == count


def scored(*texts: str) -> list[Any]:
    return [score_reply(Problem("2 + 2?", "4"), Completion(text, 5, False)) for text in texts]


def rewarded(*totals: float | None) -> list[Any]:
    return [RewardedReply("Q", "A", "text", 4, 0.0, total, {"f": total}) for total in totals]


def test_replies_that_earn_nothing_are_noticed() -> None:
    result = cold_start_note(scored("It is 4.", "5", "4", "four"), "my model", "a b.yaml") or ""
    assert "warning: a cold start: 0 of 4 replies earn a reward." in result
    assert "The last number is right in 50% of them." in result
    assert "grpo --config 'a b.yaml' prompt.examples=examples.jsonl" in result
    assert "evaluate --model 'my model' --config 'a b.yaml' --data train --examples" in result
    assert "./run sft" in result


@pytest.mark.parametrize(
    ("replies", "cold"),
    [
        (scored("4", "4\n<answer>5</answer>"), False),
        (rewarded(0.0, 0.0), True),
        (rewarded(-1.0, -1.0), True),
        (rewarded(None, 0.0), True),
        (rewarded(-1.0, 0.0), False),  # one earns more than the other
        (rewarded(0.5, 0.5), False),
        ([], False),
    ],
)
def test_others_are_not(replies: list[Any], cold: bool) -> None:
    assert (cold_start_note(replies, "m", "c") is not None) == cold
    assert "last number" not in (cold_start_note(rewarded(0.0), "m", "c") or "")
