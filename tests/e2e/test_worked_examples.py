"""Worked examples in training: prompts hold them, rewards and samples see the reply alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import DataError
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import load_problems
from posttrain.model import policy
from posttrain.run.folder import RunFolder
from posttrain.settings.command import SETTINGS, load_settings
from scripts import dpo, grpo, sft
from tests.helpers import ROOT
from tests.reliability.inside import own_handlers, rows

__all__ = ["own_handlers"]
EXAMPLE = {"question": "Anna has 2 pens. She buys 3.", "answer": "2 + 3 = 5.\n<answer>5</answer>"}
EXAMPLES = f"prompt.examples={json.dumps([EXAMPLE])}"
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own while a trainer is built


def loaded(method: str, *overrides: str) -> Any:
    path = ROOT / "configs" / f"{method}_demo.yaml"
    settings: Any = load_settings(SETTINGS[method], path, [EXAMPLES, *overrides])
    given = settings.model, settings.lora, settings.training
    return settings, *policy.load(*given, verbose=False)


def test_rewards_and_samples_of_grpo_see_the_reply_alone(tmp_path: Path) -> None:
    few = ["training.per_device_train_batch_size=8", "training.num_generations=4"]
    few += ["training.max_completion_length=6", "training.max_steps=1", "training.save_steps=1"]
    settings, model, tokenizer = loaded("grpo", *few, "training.gradient_accumulation_steps=1")
    problems = load_problems(settings.data)[0][:2]
    seen: list[tuple[Any, Any, str]] = []

    def reward(prompts: Any, completions: Any, question: Any, **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, question, strict=True))
        return [float(len(each[0]["content"])) for each in completions]

    run = RunFolder(tmp_path / "run")
    run.open(fresh=False)
    both = {"format": reward, "correctness": lambda completions, **_: [0.0] * len(completions)}
    trainer = grpo.build_trainer(model, tokenizer, problems, settings, both, run)[0]
    prompted: list[str] = []
    generate = trainer._generate_single_turn

    def watched(ids: Any, *rest: Any, **named: Any) -> Any:
        prompted.extend(map(tokenizer.decode, ids))
        return generate(ids, *rest, **named)

    trainer._generate_single_turn = watched
    trainer.train()
    requested = {problem.question for problem in problems}
    assert {question for *_, question in seen} == requested
    for prompt, completion, question in seen:
        assert [turn["role"] for turn in prompt] == ["system", "user", "assistant", "user"]
        assert prompt[-1]["content"] == question and len(completion) == 1
        assert EXAMPLE["question"] not in completion[0]["content"]
    assert len(prompted) == 8
    for text in prompted:  # as the model reads them
        at = [text.index(part) for part in EXAMPLE.values()]
        assert at[0] < at[1] < max(text.find(question) for question in requested)
    samples = rows(run.samples)
    assert {row["question"] for row in samples} <= requested and samples
    assert not any(EXAMPLE["question"] in row["completion"] for row in samples)


def test_pairs_of_dpo_are_prompted_with_them(tmp_path: Path) -> None:
    settings, model, tokenizer = loaded("dpo")
    pairs = load_pair_set(settings.data, settings.prompt).train[:4]
    trainer = dpo.build_trainer(model, tokenizer, pairs, settings, RunFolder(tmp_path / "run"))[0]
    for row, pair in zip(trainer.train_dataset, pairs, strict=True):
        prompt = tokenizer.decode(row["prompt_ids"])
        question = pair.prompt[-1]["content"]
        assert prompt.index(EXAMPLE["answer"]) < prompt.index(question)
        assert EXAMPLE["answer"] not in tokenizer.decode(row["chosen_ids"])


@pytest.mark.parametrize("script", [sft, dpo, grpo], ids=lambda script: script.__name__)
def test_lengths_count_them(script: Any, tmp_path: Path) -> None:
    method = script.__name__.rpartition(".")[2]
    config = str(ROOT / "configs" / f"{method}_demo.yaml")
    command = ["--config", config, "--output", str(tmp_path / "run"), "--dry-run"]
    long = {**EXAMPLE, "answer": "5 " * 300}
    with pytest.raises(DataError, match="rows are over the limit of"):
        script.main([*command, f"prompt.examples={json.dumps([long])}"])
