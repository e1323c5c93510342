"""Score one exported file: its answers to the held-out rows, paired with the adapter's.

Files of GRPO and SFT runs answer problems. Files of DPO runs reply to prompts, and are compared by
language, length, end and repetition.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import gsm8k, measures
from eval.gsm8k import Problem, Reply
from eval.measures import headline
from eval.preference import Pair
from eval.replies import scores
from eval.rewarded import Scorer
from posttrain.base import files
from posttrain.base.errors import ConfigError, DataError
from posttrain.data.problems import load_evaluation, load_scored_problems
from posttrain.run.folder import RunFolder
from posttrain.run.replies import check_request, claim, read_replies, resume, score_again
from posttrain.run.results import FileScore, PromptReply, paired
from posttrain.scoring import pairs, reward_functions
from posttrain.scoring.answers import Answer, EvaluatedModel, answer_all, collect
from posttrain.settings import DPOSettings, GRPOSettings, SFTSettings

Scored = tuple[float | None, FileScore]
"""Tokens per second of the answers that were still missing, if any were, and the score."""


@dataclass(frozen=True)
class File:
    """What is scored, and where its answers are stored."""

    run: Path
    model: EvaluatedModel
    weights: str | None
    """Fingerprint of the weights."""
    folder: Path

    def request(self, **more: Any) -> dict[str, Any]:
        """What the answers in the folder depend on. The run folder may be moved. Answers to another
        request, such as those of a file that was made again, are removed."""
        model = os.path.relpath(self.model.name, self.run)
        request = self.model.request(model=model, weights=self.weights, **more)
        try:
            check_request(self.folder, request)
        except ConfigError:
            print("  the stored answers were to another request; answering again")
            for name in ("replies.jsonl", "request.json"):  # answers never without their request
                (self.folder / name).unlink(missing_ok=True)
        return request


def score_file(file: File, settings: Any) -> Scored:
    """Answer what is missing, and compare with the adapter's answers; raises DataError if those are
    incomplete, or no longer in the data."""
    if isinstance(settings, DPOSettings):
        return _score_replies(file, settings)
    return _score_problems(file, settings)


def _score_problems(file: File, settings: SFTSettings | GRPOSettings) -> Scored:
    adapter = read_replies(file.run / "eval" / "after.jsonl")
    problems = held_out(settings, adapter)
    score: gsm8k.Score[Any] = gsm8k.score_reply
    weights = None
    if isinstance(settings, GRPOSettings) and settings.data.answers == "text":
        weights = settings.rewards
        functions = reward_functions.load(weights, "text", file.run)
        score = Scorer(functions, weights, settings.prompt)
    request = file.request(fingerprint=files.fingerprint(problems), rewards=weights)
    done = resume(file.folder, request)
    if weights is not None:  # the rewards may have changed since the run: score both sides again
        by_question = {problem.question: problem for problem in problems}
        with reward_functions.reward_errors():
            if done:
                score_again(file.folder, done, problems, score)
            before = adapter
            adapter = [
                score(by_question[r.question], gsm8k.completion_of(r.as_row()), 0) for r in before
            ]
        if adapter != before:
            print("  the rewards changed since the run: its answers are scored again, here alone")
    speed = answer_all(file.model, problems, request, file.folder, done, score)
    replies: list[Reply] = [done[problem.question, 0] for problem in problems]
    main = headline("numbers" if weights is None else "rewards")
    of_adapter = {reply.question: reply.scores()[main] for reply in adapter}
    both = [(of_adapter[reply.question], reply.scores()[main]) for reply in replies]
    compared = gsm8k.compare_replies(adapter, replies)
    return speed, paired(main, both, gsm8k.summarise(replies), compared)


def held_out(settings: SFTSettings | GRPOSettings, answered: Sequence[Reply]) -> list[Problem]:
    """The problems that the adapter answered, in the order of the data; raises DataError if some
    are no longer in it."""
    if isinstance(settings, GRPOSettings):
        data = settings.data
        problems = load_evaluation(data.eval, data.columns, data.answers)
    else:
        problems = load_scored_problems(settings.data.problems, ())
    questions = {reply.question for reply in answered}
    kept = [problem for problem in problems if problem.question in questions]
    if len(kept) < len(questions):
        raise DataError(
            f"{len(questions) - len(kept)} of the {len(questions)} questions that the adapter "
            "answered are no longer in the run's data; files cannot be compared with it"
        )
    return kept


def _score_replies(file: File, settings: DPOSettings) -> Scored:
    adapter = pairs.read_scores(RunFolder(file.run), settings, "after")
    if adapter is None:
        raise DataError(f"{file.run}: eval/after*.jsonl are incomplete; nothing to compare with")
    after = file.run / "eval" / "after.jsonl"
    with_system = files.rows_of(Pair, files.jsonl_rows(after), after)[: len(adapter.replies)]
    prompts = [*with_system, *pairs.without_system(with_system)]
    request = file.request(fingerprint=files.fingerprint(prompts), system=None, examples=None)
    path = file.folder / "replies.jsonl"
    known: dict[int, PromptReply] = {}
    if path.exists():
        files.cut_off_half_line(path)  # which a crash left
        stored = files.jsonl_rows(path)
        indices = [row["place"] for row in stored]
        known = dict(zip(indices, files.rows_of(PromptReply, stored, path), strict=True))
    speed = None
    if len(known) < len(prompts):
        claim(file.folder, request)
        speed = _answer(file, prompts, known, adapter.language)
        rows = ({"place": n, **vars(reply)} for n, reply in sorted(known.items()))
        files.write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    replies = [known[index] for index in range(len(prompts))]
    n, language = len(with_system), adapter.language
    of_adapter = scores(adapter.replies, language, adapter.without_system)
    of_file = scores(replies[:n], language, replies[n:])
    main = next(iter(of_file))  # the share in the language that the run is for
    both = list(zip(of_adapter[main], of_file[main], strict=True))
    compared = measures.compare(of_adapter, of_file)
    return speed, paired(main, both, measures.summarise(of_file), compared)


def _answer(file: File, prompts: list[Pair], known: dict[int, PromptReply], language: str) -> float:
    """Fill `known` and its file as replies are generated; returns their tokens per second."""

    def keep(answers: Sequence[Answer]) -> None:
        some = [prompts[index] for index, *_ in answers]
        replies = pairs.measured(some, [c for *_, c in answers], "file", language)
        new = {index: reply for (index, *_), reply in zip(answers, replies, strict=True)}
        rows = [{"place": index, **vars(reply)} for index, reply in new.items()]
        files.append_rows(file.folder / "replies.jsonl", rows)
        known.update(new)

    turns = [pair.conversation for pair in prompts]
    return collect(file.model, turns, {(index, 0) for index in known}, keep)
