"""Score replies to problems whose answer is a number: GSM8K, GSM8K-Platinum, MGSM and alike.

Every score comes from the reply's text alone, so that a file of replies can be scored again without
the model that wrote them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any, Self, TypeVar

from eval import Completion, Generate, PromptLike, conversation, measures
from eval.measures import Change
from eval.stats import Measure, pass_at_k
from rewards.answer import count_answer_elements, extract_last, extract_tagged, parse_number
from rewards.gsm8k import CORRECTNESS_REWARD, FORMAT_REWARD, format_reward

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
    """A question and its gold answer: a NUMBER that `rewards.answer.parse_number` reads, or, for
    rewards that take text, anything."""

    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)
    """File and row, for messages."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other columns of the row, under their own names, for whoever scores by them."""


@dataclass(frozen=True)
class Reply:
    """One reply to one problem; a subclass adds its scores."""

    question: str
    answer: str
    reply: str
    tokens: int | None
    truncated_rate: float
    """1.0 if the length limit ended the reply."""
    sample: int = field(default=0, kw_only=True)
    """Which of several replies to the same problem this is."""

    @classmethod
    def of(cls, problem: Problem, completion: Completion, sample: int, **scores: Any) -> Self:
        cut = float(completion.truncated)
        written = (problem.question, problem.answer, completion.text, completion.tokens, cut)
        return cls(*written, **scores, sample=sample)

    def scores(self) -> dict[str, float | None]:
        """Every measure of this reply by its name; None where it cannot be scored."""
        raise NotImplementedError

    def as_row(self) -> dict[str, object]:
        return asdict(self)


R = TypeVar("R", bound=Reply)


@dataclass(frozen=True)
class ScoredReply(Reply):
    """A reply scored by its number; each score is 0.0 or 1.0."""

    strict: float
    """Tagged, and the format is right."""
    tagged: float
    """The number in the one answer element is right."""
    lenient: float
    """Tagged, else the last number in the text is right."""
    format_rate: float

    def scores(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in MEASURES}

    def as_row(self) -> dict[str, object]:
        """The reply and its scores as one JSON row, with what makes a collapse visible."""
        return {
            **super().as_row(),
            "total_reward": FORMAT_REWARD * self.format_rate + CORRECTNESS_REWARD * self.tagged,
            "answer_elements": count_answer_elements(self.reply),
            "reasoning_characters": len(self.reply.partition("<answer>")[0].strip()),
        }


def read_number(reply: str) -> Decimal | None:
    """The number that a reply gives, read leniently: in its tag, else the last in its text."""
    tagged = extract_tagged(reply)
    return extract_last(reply) if tagged is None else tagged


def score_reply(problem: Problem, completion: Completion, sample: int = 0) -> ScoredReply:
    """Score one reply. Raises ValueError where the gold answer is not a number."""
    gold = parse_number(problem.answer)
    if gold is None:
        raise ValueError(f"the gold answer {problem.answer!r} is not a number")
    tagged = extract_tagged(completion.text) == gold
    formatted = format_reward([completion.text])[0] == 1.0
    return ScoredReply.of(
        problem,
        completion,
        sample,
        strict=float(tagged and formatted),
        tagged=float(tagged),
        lenient=float(read_number(completion.text) == gold),
        format_rate=float(formatted),
    )


def rescore(row: Mapping[str, Any]) -> ScoredReply:
    """The reply in a row of `as_row`, scored afresh. KeyError where a field is missing."""
    completion = completion_of(row)
    return score_reply(Problem(row["question"], row["answer"]), completion, row.get("sample", 0))


def completion_of(row: Mapping[str, Any]) -> Completion:
    """The completion in a row of any reply's `as_row`. KeyError where a field is missing."""
    return Completion(row["reply"], row["tokens"], bool(row["truncated_rate"]))


Score = Callable[[Problem, Completion, int], R]
"""Scores one reply to a problem, the i-th of several."""


def evaluate(
    problems: Sequence[Problem],
    generate: Generate,
    prompt: PromptLike,
    score: Score[Any] = score_reply,
) -> list[Any]:
    """Answer every problem once, with the prompt used in training, and score the replies."""
    completions = generate([conversation(problem.question, prompt) for problem in problems])
    return [score(p, c, 0) for p, c in zip(problems, completions, strict=True)]


def by_problem(replies: Sequence[R]) -> list[list[R]]:
    """Replies grouped by problem, in the order of the questions' text; samples in their order."""
    ordered = sorted(replies, key=lambda r: (r.question, r.sample))
    return [list(group) for _, group in groupby(ordered, key=lambda r: r.question)]


def problem_scores(groups: Sequence[Sequence[Reply]]) -> dict[str, list[float | None]]:
    """Per measure, one score a problem: the mean over its samples that could be scored."""
    means: dict[str, list[float | None]] = {}
    for group in groups:
        scored = [reply.scores() for reply in group]
        for name in scored[0]:
            known = [value for scores in scored if (value := scores[name]) is not None]
            means.setdefault(name, []).append(sum(known) / len(known) if known else None)
    return means


def summarise(replies: Sequence[Reply]) -> dict[str, Measure]:
    """Every measure of the replies, over the problems that could be scored; with several samples a
    problem whose answer is a number, also pass@k (tagged) and the majority vote (lenient)."""
    groups = by_problem(replies)
    several = len(groups) < len(replies)
    lengths = [[r.tokens for r in group if r.tokens is not None] for group in groups]
    more = {"mean_tokens": [sum(each) / len(each) for each in lengths if each]}
    numbers = [[r for r in group if isinstance(r, ScoredReply)] for group in groups]
    if several and numbers[0]:
        more |= _sampled(numbers)
    return measures.summarise(problem_scores(groups), several) | measures.summarise(more)


def _sampled(groups: Sequence[Sequence[ScoredReply]]) -> dict[str, list[float]]:
    """pass@k for k = 1, 2, 4 ... and the majority vote, one score a problem."""
    right = [(len(group), int(sum(reply.tagged for reply in group))) for group in groups]
    powers = [1 << i for i in range(min(n for n, _ in right).bit_length())]
    scores = {f"pass@{k}": [pass_at_k(n, c, k) for n, c in right] for k in powers}
    return {**scores, "majority_vote": [_majority(group) for group in groups]}


def _majority(group: Sequence[ScoredReply]) -> float:
    """1.0 if the most frequent number among the samples is right; a tie goes to the earliest."""
    numbers = Counter(read_number(reply.reply) for reply in group)
    del numbers[None]  # replies without a number have no vote
    most = [number for number, _ in numbers.most_common(1)]
    return float(most == [parse_number(group[0].answer)])


def compare_replies(before: Sequence[Reply], after: Sequence[Reply]) -> dict[str, Change]:
    """Every measure on both sides and its paired difference, over the problems that could be scored
    on both. Raises ValueError where they have not the same problems or not the same measures."""
    first, second = by_problem(before), by_problem(after)
    if [group[0].question for group in first] != [group[0].question for group in second]:
        raise ValueError("the two sides do not answer the same problems")
    averaged = (len(first) < len(before), len(second) < len(after))
    return measures.compare(problem_scores(first), problem_scores(second), averaged)
