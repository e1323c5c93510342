"""How an SFT run is scored: by the loss of held-out replies, and by problems it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eval import Demonstration, conversation, gsm8k, measures
from eval.gsm8k import Problem, ScoredReply
from eval.measures import headline
from eval.replies import losses
from eval.stats import Measure
from posttrain.data.render import drop_overlong, render, token_lengths
from posttrain.model import inference
from posttrain.model.log_probs import reply_sequences, token_log_probs
from posttrain.run.folder import RunFolder
from posttrain.settings import SFTSettings
from rewards.answer import parse_number

LOSS = headline("losses")


@dataclass(frozen=True)
class Scores:
    """One side, before or after."""

    losses: list[float]  # of each held-out reply, in nats a token
    replies: list[ScoredReply]  # to each problem; none where the config names no problems

    def measures(self) -> measures.Scores:
        """Per measure, one score a problem or a held-out reply."""
        answers = gsm8k.problem_scores(gsm8k.by_problem(self.replies))
        return {**answers, LOSS: self.losses}


def fitting(problems: Sequence[Problem], tokenizer: Any, settings: SFTSettings) -> list[Problem]:
    """The problems whose prompt fits model.max_seq_length."""
    prompts = [render(tokenizer, conversation(p.question, settings.prompt)) for p in problems]
    lengths, limit = token_lengths(tokenizer, prompts), settings.model.max_seq_length
    return drop_overlong(problems, lengths, limit, settings.data.overlong, "data.problems")


def reply_losses(
    model: Any, tokenizer: Any, rows: Sequence[Demonstration], settings: SFTSettings
) -> list[float]:
    """The policy's loss on the reply of each row, in nats a token, EOS included."""
    sequences = reply_sequences(tokenizer, [(row.conversation, row.reply) for row in rows])
    size = settings.evaluation.batch_size
    return losses(token_log_probs(model, tokenizer, sequences, size, False, "replies"))


def score(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Demonstration],
    problems: Sequence[Problem],
    settings: SFTSettings,
    run: RunFolder,
    side: str,
) -> Scores:
    """Score the policy and write what was scored to eval/SIDE*.jsonl."""
    print(f"Scoring {len(rows)} held-out replies ({side} training)")
    values = reply_losses(model, tokenizer, rows, settings)
    scored = zip(rows, values, strict=True)
    run.write_rows(f"{side}_losses", [{"reply": row.reply, LOSS: loss} for row, loss in scored])
    replies: list[ScoredReply] = []
    if problems:
        print(f"Scoring {len(problems)} held-out problems ({side} training)")
        evaluation, seed = settings.evaluation, settings.training.seed
        generate = inference.generator(model, tokenizer, evaluation, seed)
        replies = gsm8k.evaluate(problems, generate, settings.prompt)
    run.write_rows(side, [reply.as_row() for reply in replies])
    return Scores(values, replies)


def read_scores(run: RunFolder, side: str = "before") -> Scores | None:
    """The scores that a run took before its first step or after its last, if they are there."""
    rows, replies = run.read_rows(f"{side}_losses"), run.read_rows(side)
    if rows is None or replies is None:
        return None
    return Scores([row[LOSS] for row in rows], [gsm8k.rescore(row) for row in replies])


def validator(
    model: Any, tokenizer: Any, rows: Sequence[Demonstration], settings: SFTSettings
) -> tuple[Callable[[], dict[str, Measure]], str]:
    """A function that measures the policy on rows that were set aside, and the measure that
    decides: strict accuracy where problems are scored and the rows hold gold answers, else loss."""
    golds = {row.prompt[-1]["content"]: row.answer or "" for row in rows}
    problems = [Problem(q, gold) for q, gold in golds.items() if parse_number(gold) is not None]
    by_answers = settings.data.problems is not None and len(problems) > 0
    greedy = settings.evaluation.model_copy(update={"temperature": 0.0})

    def measure() -> dict[str, Measure]:
        loss = measures.summarise({LOSS: reply_losses(model, tokenizer, rows, settings)})
        if not by_answers:
            return loss
        generate = inference.generator(model, tokenizer, greedy, settings.training.seed)
        replies = gsm8k.evaluate(problems, generate, settings.prompt)
        return gsm8k.summarise(replies) | loss

    return measure, headline("numbers" if by_answers else "losses")
