"""What a run knows of questions: those it was scored on, and the rewards of replies to its own."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from eval import Completion, PromptLike
from eval.gsm8k import Problem
from eval.rewarded import Scorer
from posttrain.base.errors import PostTrainError
from posttrain.base.files import jsonl_rows
from posttrain.chat.source import Source
from posttrain.data.problems import load_problems
from posttrain.scoring import reward_functions
from posttrain.settings import ProblemData
from posttrain.settings.command import check_settings
from rewards import RewardFunction

TOTAL = "total"
# Where a run keeps its held-out questions, and the column that they are in.
HELD_OUT = {
    "sft": ("after.jsonl", "question"),
    "grpo": ("after.jsonl", "question"),
    "dpo": ("after_replies.jsonl", "prompt"),
}


class Known:
    """The problems of a GRPO run with their gold answers, and the rewards that it trained on."""

    def __init__(
        self,
        problems: Mapping[str, Problem],
        functions: Mapping[str, RewardFunction],
        weights: Mapping[str, float],
    ) -> None:
        self._problems = {_key(question): problem for question, problem in problems.items()}
        self._functions, self._weights = functions, weights

    def gold(self, question: str) -> str | None:
        """The right answer; None for a question that is not the run's."""
        problem = self._problems.get(_key(question))
        return problem.answer if problem else None

    def rewards(
        self, question: str, reply: Completion, prompt: PromptLike
    ) -> dict[str, float | None]:
        """Each reward before its weight, and their weighted total; empty for another question.

        Raises:
            ConfigError: a reward raised, or returned no number.
        """
        problem = self._problems.get(_key(question))
        if problem is None:
            return {}
        with reward_functions.reward_errors():
            scored = Scorer(self._functions, self._weights, prompt)(problem, reply)
        names = {name: name.rpartition(":")[2] for name in scored.rewards}
        earned = {names[name]: value for name, value in scored.rewards.items()}
        return {**earned, TOTAL: scored.total_reward}


NOTHING = Known({}, {}, {})


def load_known(source: Source) -> Known:
    """The problems of the run's data, to train on and to score; none if it is no GRPO run.

    Where they or its rewards are not on this machine, that is printed, and nothing is known.
    """
    if source.run.get("method") != "grpo":
        return NOTHING
    weights: dict[str, float] = source.run.get("rewards") or {}
    try:
        data = check_settings(ProblemData, source.run["data"], f"{source.folder}/config.yaml")
        problems = [problem for side in load_problems(data) for problem in side]
        functions = reward_functions.load(weights, data.answers, source.folder)
    except PostTrainError as error:
        print(f"note: replies are shown without rewards: {error}", file=sys.stderr)
        return NOTHING
    return Known({problem.question: problem for problem in problems}, functions, weights)


def held_out_questions(source: Source, most: int) -> list[str]:
    """Questions that the run was scored on and not trained on, at most so many, no two alike."""
    name, column = HELD_OUT.get(source.run.get("method", ""), ("", ""))
    path = (source.folder or Path()) / "eval" / name
    if source.folder is None or not path.is_file():
        return []
    with contextlib.suppress(PostTrainError):  # a damaged file leaves the chat without examples
        return list(dict.fromkeys(_texts(path, column)))[:most]
    return []


def _texts(path: Path, column: str) -> Iterator[str]:
    for row in jsonl_rows(path):
        if isinstance(row.get(column), str):
            yield row[column]


def _key(question: str) -> str:
    """A question without what copying changes in it: line breaks and runs of spaces."""
    return " ".join(question.split())
