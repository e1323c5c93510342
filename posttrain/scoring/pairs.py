"""How a DPO run is scored, before its first step and after its last.

By its held-out pairs, by what its replies to their prompts are like, by how far it moved from the
reference, and by problem sets that it was not trained for. Everything scored is kept in eval/.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from eval import Completion, Conversation, PromptFormat, conversation, gsm8k, measures, replies
from eval.gsm8k import SYSTEM, Problem, ScoredReply
from eval.preference import Pair, ScoredPair, as_row, score_pairs
from eval.preference import scores as pair_scores
from eval.stats import Measure
from posttrain.base.errors import DataError, quoted
from posttrain.base.files import rows_of
from posttrain.data.pairs import measure
from posttrain.data.problems import load_evaluation, seen_in_training
from posttrain.data.prompted import user_turns
from posttrain.data.render import drop_overlong, render, token_ids, token_lengths
from posttrain.model import inference
from posttrain.model.log_probs import pair_log_probs, token_log_probs
from posttrain.run.folder import RunFolder
from posttrain.run.results import PromptReply, SampledReply
from posttrain.settings import DPOSettings, ProblemSet

T = TypeVar("T")
Problems = dict[str, list[Problem]]  # by the name of their set


@dataclass(frozen=True)
class Scores:
    """One side, before or after."""

    pairs: list[ScoredPair]
    replies: list[PromptReply]  # one a prompt, as evaluation.temperature has them
    without_system: list[PromptReply]  # the same without system turns; none if no prompt has one
    divergence: list[float]
    """KL to the reference in nats a token, of one reply a prompt sampled at temperature 1."""
    problems: dict[str, list[ScoredReply]]
    language: str = "fr"  # the one that replies should be in

    def measures(self) -> measures.Scores:
        """Per measure, one score a row; those of a problem set are called NAME/MEASURE. Without
        replies, nothing about them."""
        scores: dict[str, Sequence[float | None]] = {**pair_scores(self.pairs)}
        if self.replies:
            scores |= replies.scores(self.replies, self.language, self.without_system)
            scores["kl_per_token"] = self.divergence
        for name, answered in self.problems.items():
            of_set = gsm8k.problem_scores(gsm8k.by_problem(answered))
            scores |= {f"{name}/{measure}": each for measure, each in of_set.items()}
        return scores


def load_problems(settings: DPOSettings, train: Sequence[Pair], tokenizer: Any) -> Problems:
    """The problems of `evaluation.also` that fit model.max_seq_length; raises DataError if a
    question is a user turn of a training pair."""
    trained_on, sets = user_turns(train), settings.evaluation.also
    loaded = {}
    for each in sets:
        problems = load_evaluation(each, each.columns)
        if shared := seen_in_training(problems, trained_on):
            raise DataError(
                f"evaluation.also: {each.name}: {len(shared)} of {len(problems)} questions are "
                f"prompts of {settings.data.train.path}, such as {quoted(shared[0].question)}; a "
                "score on questions that were trained on says nothing. Remove those rows, or the "
                "set"
            )
        prompts = [render(tokenizer, conversation(p.question, _prompt(each))) for p in problems]
        lengths, what = token_lengths(tokenizer, prompts), f"evaluation.also: {each.name}"
        limit, rule = settings.model.max_seq_length - each.max_new_tokens, settings.data.overlong
        loaded[each.name] = drop_overlong(problems, lengths, limit, rule, what)
    if loaded:
        sizes = ", ".join(f"{name} ({len(problems)})" for name, problems in loaded.items())
        print(f"Also scored before and after: {sizes}")
    if any("mgsm" in each.path.lower() for each in sets):
        print(gsm8k.MGSM_OVERLAP)
    return loaded


def _prompt(each: ProblemSet) -> PromptFormat:
    """The standard system prompt, without the run's worked examples: a set's scores compare with
    those of other runs."""
    return PromptFormat(SYSTEM[each.language])


def score(
    model: Any,
    tokenizer: Any,
    pairs: list[Pair],
    problems: Problems,
    settings: DPOSettings,
    run: RunFolder,
    side: str,
) -> Scores:
    """Score the policy and write what was scored to eval/SIDE*.jsonl."""
    print(f"Scoring {len(pairs)} held-out pairs ({side} training)")
    scored = pair_scorer(model, tokenizer, pairs, settings)()
    run.write_rows(side, [as_row(p, s) for p, s in zip(pairs, scored, strict=True)])
    language = settings.data.language or "fr"
    answered = pairs[: settings.evaluation.replies]
    generate = inference.generator(model, tokenizer, settings.evaluation, settings.training.seed)

    def reply_to(some: Sequence[Pair], name: str) -> list[PromptReply]:
        completions = generate([pair.conversation for pair in some])
        result = measured(some, completions, side, language)
        run.write_rows(name, map(vars, result))
        return result

    answers = reply_to(answered, f"{side}_replies")
    without = reply_to(without_system(answered), f"{side}_replies_without_system")
    prompts = [pair.conversation for pair in answered]
    sampled, divergence = sample(model, tokenizer, prompts, settings)
    samples = [
        SampledReply(*_answered(side, pair), c.text, c.tokens or 0, not c.truncated, kl)
        for pair, c, kl in zip(answered, sampled, divergence, strict=True)
    ]
    run.write_rows(f"{side}_samples", map(vars, samples))
    also = {}
    for each in settings.evaluation.also:
        print(f"Scoring {len(problems[each.name])} problems of {each.name} ({side} training)")
        also[each.name] = _answer(model, tokenizer, each, problems[each.name], settings)
        run.write_rows(f"{side}_problems_{each.name}", [r.as_row() for r in also[each.name]])
    return Scores(scored, answers, without, divergence, also, language)


def _answer(
    model: Any, tokenizer: Any, each: ProblemSet, problems: list[Problem], settings: DPOSettings
) -> list[ScoredReply]:
    """Answer the problems greedily under the standard system prompt, and score the replies."""
    own = {"temperature": 0.0, "max_new_tokens": each.max_new_tokens, "stop_at_answer": False}
    evaluation = settings.evaluation.model_copy(update=own)
    generate = inference.generator(model, tokenizer, evaluation, settings.training.seed)
    return gsm8k.evaluate(problems, generate, _prompt(each))


def measured(
    pairs: Sequence[Pair], completions: Sequence[Completion], side: str, language: str
) -> list[PromptReply]:
    """The completions as measured replies to the prompts of the pairs."""
    return [
        PromptReply(*_answered(side, pair), **vars(reply))
        for pair, reply in zip(pairs, replies.measure(completions, language), strict=True)
    ]


def without_system(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs without their system turns, be they of the config or the row; none if none has one.
    A chat template may then add its own."""
    bare = [
        replace(pair, prompt=tuple(turn for turn in pair.prompt if turn["role"] != "system"))
        for pair in pairs
    ]
    return [] if bare == list(pairs) else bare


def pair_scorer(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings
) -> Callable[[], list[ScoredPair]]:
    """A function that scores the pairs by the policy as it then is. The reference, which does not
    change, is scored once."""
    batch_size = settings.evaluation.batch_size

    @functools.cache
    def reference() -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
        tokens = [(length.chosen, length.rejected) for length in measure(pairs, tokenizer)]
        return pair_log_probs(model, tokenizer, pairs, batch_size, reference=True), tokens

    def score() -> list[ScoredPair]:
        policy = pair_log_probs(model, tokenizer, pairs, batch_size, reference=False)
        return score_pairs(policy, *reference(), settings.training.beta)

    return score


def validator(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings
) -> tuple[Callable[[], dict[str, Measure]], str]:
    """A function that measures the policy on pairs that were set aside from the training data, and
    the measure that decides."""
    score = pair_scorer(model, tokenizer, pairs, settings)
    return lambda: measures.summarise(pair_scores(score())), measures.headline("pairs")


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Conversation], settings: DPOSettings
) -> tuple[list[Completion], list[float]]:
    """A reply to each prompt, sampled from the policy as it is, and its KL to the reference."""
    evaluation = settings.evaluation.from_the_policy()
    sampled = inference.generator(model, tokenizer, evaluation, settings.training.seed)(prompts)
    read = token_ids(tokenizer, [render(tokenizer, turns) for turns in prompts])
    sequences = [([*ids, *reply.ids], len(ids)) for ids, reply in zip(read, sampled, strict=True)]
    policy, reference = (
        token_log_probs(model, tokenizer, sequences, evaluation.batch_size, adapter_off, "samples")
        for adapter_off in (False, True)
    )
    return sampled, [replies.kl_per_token(*both) for both in zip(policy, reference, strict=True)]


def read_scores(run: RunFolder, settings: DPOSettings, side: str = "before") -> Scores | None:
    """The scores that a run took before its first step or after its last, if all are there."""
    sets = {each.name: f"_problems_{each.name}" for each in settings.evaluation.also}
    files = ("", "_replies", "_replies_without_system", "_samples", *sets.values())
    rows = {name: run.read_rows(f"{side}{name}") for name in files}
    if None in rows.values():
        return None

    def of(kind: type[T], name: str) -> list[T]:
        return rows_of(kind, rows[name] or [], run.path / "eval" / f"{side}{name}.jsonl")

    return Scores(
        of(ScoredPair, ""),
        of(PromptReply, "_replies"),
        of(PromptReply, "_replies_without_system"),
        [reply.kl_per_token for reply in of(SampledReply, "_samples")],
        {name: [gsm8k.rescore(row) for row in rows[file] or []] for name, file in sets.items()},
        settings.data.language or "fr",
    )


def _answered(side: str, pair: Pair) -> tuple[str, str | None, Conversation, str]:
    """The fields of a posttrain.run.results.Answered."""
    system = [turn["content"] for turn in pair.prompt if turn["role"] == "system"]
    earlier = [turn for turn in pair.prompt[:-1] if turn["role"] != "system"]
    return side, "\n".join(system) or None, earlier, pair.prompt[-1]["content"]
