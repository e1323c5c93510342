"""What a run knows of questions: those it was scored on, and the rewards of replies to its own."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Known:
    """The problems of a GRPO run with their gold answers, and the rewards that it trained on."""

    problems: Mapping[str, Problem]
    """By their question, without what copying changes in it."""
    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]

    def gold(self, question: str) -> str | None:
        """The right answer; None for a question that is not in the run's data."""
        problem = self.problems.get(_key(question))
        return problem.answer if problem else None

    def rewards(
        self, question: str, reply: Completion, prompt: PromptLike
    ) -> dict[str, float | None]:
        """Each reward before its weight, and their weighted total; empty for another question.
        Raises ConfigError if a reward raised, or did not return a number."""
        problem = self.problems.get(_key(question))
        if problem is None:
            return {}
        with reward_functions.reward_errors():
            scored = Scorer(self.functions, self.weights, prompt)(problem, reply)
        earned = {name.rpartition(":")[2]: value for name, value in scored.rewards.items()}
        return {**earned, TOTAL: scored.total_reward}


NOTHING = Known({}, {}, {})


def load_known(source: Source) -> Known:
    """The training and test problems of a GRPO run; NOTHING for others.

    If they or the rewards are not on this machine, prints a note and returns NOTHING.
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
    return Known({_key(problem.question): problem for problem in problems}, functions, weights)


def held_out_questions(source: Source, most: int) -> list[str]:
    """At most so many different questions that the run was scored on; none if they are damaged."""
    if source.folder is None:
        return []
    of_pairs = source.run.get("method") == "dpo"
    name, column = ("after_replies.jsonl", "prompt") if of_pairs else ("after.jsonl", "question")
    try:
        rows = jsonl_rows(source.folder / "eval" / name)
    except (OSError, PostTrainError):
        return []
    questions = [row[column] for row in rows if isinstance(row.get(column), str)]
    return list(dict.fromkeys(questions))[:most]


def _key(question: str) -> str:
    """A question without what copying changes in it: line breaks and runs of spaces."""
    return " ".join(question.split())
