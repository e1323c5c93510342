"""Problem sets beside the pairs of a DPO run: a check that training on pairs lost nothing."""

from collections.abc import Sequence
from typing import Any

from eval import PromptFormat, conversation
from eval.gsm8k import MGSM_OVERLAP, SYSTEM, Problem, ScoredReply, evaluate
from eval.preference import Pair
from posttrain.base.errors import DataError, quoted
from posttrain.data.problems import load_evaluation, seen_in_training
from posttrain.data.prompted import user_turns
from posttrain.data.render import drop_overlong, render, token_lengths
from posttrain.model import inference
from posttrain.settings import DPOSettings, ProblemSet

Problems = dict[str, list[Problem]]  # by the name of their set


def load(settings: DPOSettings, train: Sequence[Pair], tokenizer: Any) -> Problems:
    """The problems of `evaluation.also` that fit model.max_seq_length; raises DataError if a
    question is a user turn of a training pair."""
    turns = user_turns(train)
    sets = settings.evaluation.also
    loaded = {each.name: _load(each, turns, tokenizer, settings) for each in sets}
    if loaded:
        sizes = ", ".join(f"{name} ({len(problems)})" for name, problems in loaded.items())
        print(f"Also scored before and after: {sizes}")
    if any("mgsm" in each.path.lower() for each in sets):
        print(MGSM_OVERLAP)
    return loaded


def _load(
    each: ProblemSet, trained_on: Sequence[str], tokenizer: Any, settings: DPOSettings
) -> list[Problem]:
    problems = load_evaluation(each, each.columns)
    shared = seen_in_training(problems, trained_on)
    if shared:
        raise DataError(
            f"evaluation.also: {each.name}: {len(shared)} of {len(problems)} questions are prompts "
            f"of {settings.data.train.path}, such as {quoted(shared[0].question)}; a score on "
            "questions that were trained on says nothing. Remove those rows, or the set"
        )
    prompts = [render(tokenizer, conversation(p.question, _prompt(each))) for p in problems]
    lengths = token_lengths(tokenizer, prompts)
    limit, rule = settings.model.max_seq_length - each.max_new_tokens, settings.data.overlong
    return drop_overlong(problems, lengths, limit, rule, f"evaluation.also: {each.name}")


def score(
    model: Any, tokenizer: Any, each: ProblemSet, problems: list[Problem], settings: DPOSettings
) -> list[ScoredReply]:
    """Answer the problems greedily under the standard system prompt, and score the replies."""
    own = {"temperature": 0.0, "max_new_tokens": each.max_new_tokens, "stop_at_answer": False}
    evaluation = settings.evaluation.model_copy(update=own)
    generate = inference.generator(model, tokenizer, evaluation, settings.training.seed)
    return evaluate(problems, generate, _prompt(each))


def _prompt(each: ProblemSet) -> PromptFormat:
    """The standard system prompt, without the run's worked examples: a set's scores compare with
    those of other runs."""
    return PromptFormat(SYSTEM[each.language])
