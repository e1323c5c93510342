"""Score replies to problems whose answer is a number (GSM8K and alike)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval import Completion, Conversation, Generate
from eval.stats import compare, mean, proportion
from rewards.answer import extract_last, extract_tagged, parse_number
from rewards.gsm8k import format_reward

MEASURES = ("strict", "tagged", "lenient", "format_rate", "truncated_rate")


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer, a NUMBER that `rewards.answer.parse_number` reads."""

    question: str
    answer: str


@dataclass(frozen=True)
class ScoredReply:
    """A reply to one problem and its scores, each 0.0 or 1.0 except `tokens`."""

    question: str
    answer: str
    reply: str
    strict: float
    """Format and number right."""
    tagged: float
    """Number in the one answer element right."""
    lenient: float
    """Tagged, else the last number in the text is right."""
    format_rate: float
    truncated_rate: float
    tokens: int


def score_reply(problem: Problem, completion: Completion) -> ScoredReply:
    """Score one reply. ValueError if the gold answer is not a number."""
    gold = parse_number(problem.answer)
    if gold is None:
        raise ValueError(f"the gold answer {problem.answer!r} is not a number")
    number = extract_tagged(completion.text)
    formatted = format_reward([completion.text])[0] == 1.0
    tagged = number == gold
    lenient = tagged or (number is None and extract_last(completion.text) == gold)
    return ScoredReply(
        question=problem.question,
        answer=problem.answer,
        reply=completion.text,
        strict=float(tagged and formatted),
        tagged=float(tagged),
        lenient=float(lenient),
        format_rate=float(formatted),
        truncated_rate=float(completion.truncated),
        tokens=completion.tokens,
    )


def evaluate(
    problems: Sequence[Problem], generate: Generate, system: str | None
) -> list[ScoredReply]:
    """Answer every problem once, with the prompt used in training, and score the replies."""
    turns: list[Conversation] = []
    for problem in problems:
        head = [{"role": "system", "content": system}] if system else []
        turns.append([*head, {"role": "user", "content": problem.question}])
    completions = generate(turns)
    return [score_reply(p, c) for p, c in zip(problems, completions, strict=True)]


def summarise(replies: Sequence[ScoredReply]) -> dict[str, Any]:
    """`{"value", "n", "low", "high"}` for every measure, and for the mean tokens of a reply."""
    rows = [asdict(reply) for reply in replies]
    report = {name: proportion([row[name] for row in rows]) for name in MEASURES}
    return {**report, "mean_tokens": mean([row["tokens"] for row in rows])}


def compare_replies(
    before: Sequence[ScoredReply], after: Sequence[ScoredReply]
) -> dict[str, dict[str, Any]]:
    """Both summaries and, per measure, the paired difference with its interval and p-value.

    Raises:
        ValueError: the two do not answer the same problems in the same order.
    """
    if [reply.question for reply in before] != [reply.question for reply in after]:
        raise ValueError("the two sides do not answer the same problems in the same order")
    first, second = summarise(before), summarise(after)
    return {
        name: {
            "before": first[name],
            "after": second[name],
            **compare([getattr(r, name) for r in before], [getattr(r, name) for r in after]),
        }
        for name in MEASURES
    }
