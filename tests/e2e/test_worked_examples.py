"""Worked examples in training: prompts hold them, rewards and samples see the reply alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import DataError
from tests.e2e.test_sft import EXAMPLE, EXAMPLES
from tests.e2e.trainers import build
from tests.helpers import demo_command, rows
from tests.reliability.inside import MAIN


def test_rewards_and_samples_of_grpo_see_the_reply_alone(tmp_path: Path) -> None:
    few = ["training.per_device_train_batch_size=8", "training.num_generations=4"]
    few += ["training.max_completion_length=6", "training.max_steps=1", "training.save_steps=1"]
    few += ["training.gradient_accumulation_steps=1", EXAMPLES]
    seen: list[tuple[Any, Any, str]] = []

    def reward(prompts: Any, completions: Any, question: Any, **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, question, strict=True))
        return [float(len(each[0]["content"])) for each in completions]

    both = {"format": reward, "correctness": lambda completions, **_: [0.0] * len(completions)}
    built = build("grpo", tmp_path, *few, count=2, rewards=both)
    trainer = built.trainer
    prompted: list[str] = []
    generate = trainer._generate_single_turn

    def watched(ids: Any, *rest: Any, **named: Any) -> Any:
        prompted.extend(map(built.tokenizer.decode, ids))
        return generate(ids, *rest, **named)

    trainer._generate_single_turn = watched
    trainer.train()
    requested = {problem.question for problem in built.rows}
    assert {question for *_, question in seen} == requested
    for prompt, completion, question in seen:
        assert [turn["role"] for turn in prompt] == ["system", "user", "assistant", "user"]
        assert prompt[-1]["content"] == question and len(completion) == 1
        assert EXAMPLE["question"] not in completion[0]["content"]
    assert len(prompted) == 8
    for text in prompted:  # as the model reads them
        at = [text.index(part) for part in EXAMPLE.values()]
        assert at[0] < at[1] < max(text.find(question) for question in requested)
    samples = rows(tmp_path / "run" / "samples.jsonl")
    assert {row["question"] for row in samples} <= requested and samples
    assert not any(EXAMPLE["question"] in row["completion"] for row in samples)


@pytest.mark.parametrize("method", MAIN)
def test_lengths_count_them(method: str, tmp_path: Path) -> None:
    long = f"prompt.examples={json.dumps([{**EXAMPLE, 'answer': '5 ' * 300}])}"
    with pytest.raises(DataError, match="rows are over the limit of"):
        MAIN[method](demo_command(method, tmp_path / "run", "--dry-run", long))
