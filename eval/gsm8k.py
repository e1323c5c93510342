"""Score replies to problems whose answer is a number: GSM8K, GSM8K-Platinum, MGSM and alike.

Every score comes from the reply's text alone, so that a file of replies can be scored again without
the model that wrote them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

from eval import Completion, Generate, conversation
from eval.stats import compare, mean, pass_at_k, proportion
from rewards.answer import count_answer_elements, extract_last, extract_tagged, parse_number
from rewards.gsm8k import format_reward

# The system prompt of an evaluation, by language: steps, and the answer where a program finds it.
SYSTEM = {
    "en": "Solve the problem step by step. End with the number alone on the last line as "
    "<answer>NUMBER</answer>.",
    "fr": "Résous le problème étape par étape. Termine par le nombre seul sur la dernière ligne : "
    "<answer>NOMBRE</answer>.",
}
MGSM_OVERLAP = (
    "MGSM is GSM8K's test questions 0-249 translated: the two scores are not independent."
)
MEASURES = ("strict", "tagged", "lenient", "format_rate", "truncated_rate")


@dataclass(frozen=True)
class Problem:
    """A question and its gold answer, a NUMBER that `rewards.answer.parse_number` reads."""

    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)
    """File and row, for messages."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other columns of the row, under their own names, for whoever scores by them."""


@dataclass(frozen=True)
class ScoredReply:
    """One reply to one problem, and its scores of 0.0 or 1.0."""

    question: str
    answer: str
    reply: str
    tokens: int
    truncated_rate: float
    """1.0 if the length limit ended the reply."""
    strict: float
    """Tagged, and the format is right."""
    tagged: float
    """The number in the one answer element is right."""
    lenient: float
    """Tagged, else the last number in the text is right."""
    format_rate: float
    sample: int = 0
    """Which of several replies to the same problem this is."""

    def as_row(self) -> dict[str, Any]:
        """The reply and its scores as one JSON row, with what makes a collapse visible."""
        return {
            **asdict(self),
            "answer_elements": count_answer_elements(self.reply),
            "reasoning_characters": len(self.reply.partition("<answer>")[0].strip()),
        }


def read_number(reply: str) -> Decimal | None:
    """The number that a reply gives, read leniently: in its tag, else the last in its text."""
    tagged = extract_tagged(reply)
    return extract_last(reply) if tagged is None else tagged


def score_reply(problem: Problem, completion: Completion, sample: int = 0) -> ScoredReply:
    """Score one reply.

    Raises:
        ValueError: the gold answer is not a number.
    """
    gold = parse_number(problem.answer)
    if gold is None:
        raise ValueError(f"the gold answer {problem.answer!r} is not a number")
    tagged = extract_tagged(completion.text) == gold
    formatted = format_reward([completion.text])[0] == 1.0
    return ScoredReply(
        question=problem.question,
        answer=problem.answer,
        reply=completion.text,
        tokens=completion.tokens,
        truncated_rate=float(completion.truncated),
        strict=float(tagged and formatted),
        tagged=float(tagged),
        lenient=float(read_number(completion.text) == gold),
        format_rate=float(formatted),
        sample=sample,
    )


def rescore(row: dict[str, Any]) -> ScoredReply:
    """The reply in a row of `as_row`, scored afresh. KeyError where a field is missing."""
    completion = Completion(row["reply"], row["tokens"], bool(row["truncated_rate"]))
    return score_reply(Problem(row["question"], row["answer"]), completion, row.get("sample", 0))


def evaluate(
    problems: Sequence[Problem], generate: Generate, system: str | None, sample: int = 0
) -> list[ScoredReply]:
    """Answer every problem once, with the prompt used in training, and score the replies."""
    completions = generate([conversation(problem.question, system) for problem in problems])
    return [score_reply(p, c, sample) for p, c in zip(problems, completions, strict=True)]


def by_problem(replies: Sequence[ScoredReply]) -> list[list[ScoredReply]]:
    """Replies grouped by problem, in the order of the questions' text; samples in their order."""
    ordered = sorted(replies, key=lambda r: (r.question, r.sample))
    return [list(group) for _, group in groupby(ordered, key=lambda r: r.question)]


def problem_scores(groups: Sequence[Sequence[ScoredReply]]) -> dict[str, list[float]]:
    """Per measure, one score a problem: the mean over its samples."""
    return {
        name: [sum(getattr(reply, name) for reply in group) / len(group) for group in groups]
        for name in MEASURES
    }


def summarise(replies: Sequence[ScoredReply]) -> dict[str, Any]:
    """`{"value", "n", "low", "high"}` for every measure, with n problems.

    With several samples a problem, also pass@k and majority vote on the tagged and lenient rules.
    """
    groups = by_problem(replies)
    several = max(len(group) for group in groups) > 1
    interval = mean if several else proportion  # a mean over samples is no longer 0 or 1
    report: dict[str, Any] = {
        name: interval(values) for name, values in problem_scores(groups).items()
    }
    report["mean_tokens"] = mean([float(reply.tokens) for group in groups for reply in group])
    if several:
        report.update(_sampled(groups))
    return report


def _sampled(groups: Sequence[Sequence[ScoredReply]]) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4 ... and the majority vote."""
    fewest = min(len(group) for group in groups)
    right = [sum(reply.tagged for reply in group) for group in groups]
    report: dict[str, Any] = {}
    k = 1
    while k <= fewest:
        values = [pass_at_k(len(g), int(c), k) for g, c in zip(groups, right, strict=True)]
        report[f"pass@{k}"] = mean(values)
        k *= 2
    report["majority_vote"] = proportion([_majority(group) for group in groups])
    return report


def _majority(group: Sequence[ScoredReply]) -> float:
    """1.0 if the most frequent number among the samples is right; a tie goes to the earliest."""
    read = [read_number(reply.reply) for reply in group]
    numbers = [number for number in read if number is not None]
    if not numbers:
        return 0.0
    return float(Counter(numbers).most_common(1)[0][0] == parse_number(group[0].answer))


def compare_replies(
    before: Sequence[ScoredReply], after: Sequence[ScoredReply]
) -> dict[str, dict[str, Any]]:
    """Both summaries and, per measure, the paired difference with its interval and p-value.

    Raises:
        ValueError: the two do not answer the same problems.
    """
    first, second = by_problem(before), by_problem(after)
    if [group[0].question for group in first] != [group[0].question for group in second]:
        raise ValueError("the two sides do not answer the same problems")
    old, new = problem_scores(first), problem_scores(second)
    before_summary, after_summary = summarise(before), summarise(after)
    return {
        name: {
            "before": before_summary[name],
            "after": after_summary[name],
            **compare(old[name], new[name]),
        }
        for name in MEASURES
    }
