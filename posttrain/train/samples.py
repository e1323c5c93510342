"""Completions of every generation with their rewards, for samples.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.base.errors import HealthError
from posttrain.base.files import append_rows
from rewards import RewardError, RewardFunction, score
from rewards.answer import count_answer_elements


def reasoning(text: str) -> str:
    """The text of a completion before its answer."""
    return text.partition("<answer>")[0].strip()


@dataclass
class SampleRecorder:
    """Wraps reward functions to write some completions of every generation to samples.jsonl.

    trl calls the functions one after the other on the same completions. After the last one, the
    first `count` rows are written with all their rewards. Three metrics are added to trl's:

    - `rewards/NAME/zero_spread`: the share of groups of `group` completions with equal rewards;
    - `rewards/NAME/unscored`: the share of completions that it could not score;
    - `completions/reasoning`: the mean number of characters before the answer.
    """

    path: Path
    count: int
    group: int
    _scores: dict[str, Sequence[float | None]] = field(default_factory=dict)

    def wrap(self, functions: dict[str, RewardFunction]) -> list[RewardFunction]:
        """The functions to give to the trainer, in the same order and with the same names."""
        return [self._wrap(name, f, len(functions)) for name, f in functions.items()]

    def _wrap(self, name: str, function: RewardFunction, total: int) -> RewardFunction:
        def reward(**columns: Any) -> Sequence[float | None]:
            try:
                scores = score(name, function, columns)
            except RewardError as error:
                step = columns["trainer_state"].global_step + 1
                raise HealthError(f"step {step}: {error}") from error
            self._scores[name] = scores
            unscored = sum(value is None for value in scores) / len(scores)
            columns["log_metric"](f"rewards/{name}/unscored", unscored)
            groups = [scores[i : i + self.group] for i in range(0, len(scores), self.group)]
            equal = [len(set(group)) == 1 for group in groups]
            columns["log_metric"](f"rewards/{name}/zero_spread", sum(equal) / len(equal))
            if len(self._scores) == total:
                lengths = [len(reasoning(turns[-1]["content"])) for turns in columns["completions"]]
                columns["log_metric"]("completions/reasoning", sum(lengths) / len(lengths))
                self._write(columns)
                self._scores = {}
            return scores

        reward.__name__ = name
        return reward

    def _write(self, columns: dict[str, Any]) -> None:
        texts = [turns[-1]["content"] for turns in columns["completions"][: self.count]]
        rows = [
            {
                "step": columns["trainer_state"].global_step + 1,  # the first to learn from it
                "question": columns["prompts"][i][-1]["content"],
                "answer": columns["answer"][i],
                "completion": text,
                "tokens": len(columns["completion_ids"][i]),
                "answer_elements": count_answer_elements(text),
                "reasoning_characters": len(reasoning(text)),
                **{f"reward/{name}": scores[i] for name, scores in self._scores.items()},
            }
            for i, text in enumerate(texts)
        ]
        append_rows(self.path, rows)
