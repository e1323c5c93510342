"""How a GRPO run is scored: by the numbers in its answers or, if golds are text, by its rewards."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.gsm8k import Problem, Reply, Score, completion_of, evaluate, score_reply, summarise
from eval.measures import headline
from eval.rewarded import Scorer, reward_row
from eval.stats import Measure
from posttrain.base.errors import HealthError
from posttrain.model import inference
from posttrain.run.folder import RunFolder
from posttrain.scoring.reward_functions import reward_errors, tried
from posttrain.settings import GRPOSettings
from rewards import RewardFunction


def scorer(
    settings: GRPOSettings, functions: Mapping[str, RewardFunction], sample: Problem
) -> Score[Any]:
    """What scores a reply to a problem. Raises ConfigError if a reward cannot score `sample`, a
    held-out problem."""
    if settings.data.answers == "number":
        return score_reply
    tried(functions, reward_row(sample, settings.prompt), f"{sample.where}: ")
    return Scorer(functions, settings.rewards, settings.prompt)


def score(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    settings: GRPOSettings,
    run: RunFolder,
    side: str,
    by: Score[Any],
) -> list[Reply]:
    """Answer the problems with the prompt used in training; the replies go to eval/SIDE.jsonl."""
    print(f"Scoring {len(problems)} held-out problems ({side} training)")
    generate = inference.generator(model, tokenizer, settings.evaluation, settings.training.seed)
    with reward_errors():
        replies = evaluate(problems, generate, settings.prompt, score=by)
    run.write_rows(side, [reply.as_row() for reply in replies])
    return replies


def read_scores(run: RunFolder, problems: Sequence[Problem], by: Score[Any]) -> list[Reply] | None:
    """The replies that an interrupted run wrote before its first step, scored again."""
    rows = run.read_rows("before")
    if rows is None:
        return None
    problem_of = {problem.question: problem for problem in problems}
    with reward_errors():
        return [by(problem_of[row["question"]], completion_of(row), 0) for row in rows]


def validator(
    model: Any, tokenizer: Any, problems: Sequence[Problem], settings: GRPOSettings, by: Score[Any]
) -> tuple[Callable[[], dict[str, Measure]], str]:
    """A function that measures greedy replies to problems that were set aside, and the measure that
    decides. The function raises HealthError if the rewards can score none of them."""
    main = headline("numbers" if settings.data.answers == "number" else "rewards")
    greedy = settings.evaluation.model_copy(update={"temperature": 0.0})

    def measure() -> dict[str, Measure]:
        generate = inference.generator(model, tokenizer, greedy, settings.training.seed)
        with reward_errors():
            measures = summarise(evaluate(problems, generate, settings.prompt, score=by))
        if measures[main].value is None:
            raise HealthError(
                f"the rewards returned None for all {len(problems)} problems of data.validation, "
                "so no step can be chosen as the best; let them score these, or set "
                "data.validation to 0"
            )
        return measures

    return measure, main
