"""Which replies a page shows: picked by a rule, not by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.record import Record, Row, number

# How many to show of (right before, right after): the first of each kind, in the file's order.
SHOWN = {(False, True): 3, (True, False): 2, (False, False): 1, (True, True): 1}
ROLLOUT_STEPS = 4
HEAD, TAIL = 420, 260  # characters kept of a long reply; the answer is at its end


@dataclass(frozen=True)
class Reply:
    text: str
    left_out: int
    """Characters left out of the middle of `text`."""
    tokens: int | None
    good: bool
    mark: str


@dataclass(frozen=True)
class Pair:
    """Replies to one question before and after training."""

    question: str
    gold: str
    before: Reply
    after: Reply


@dataclass(frozen=True)
class Rollout:
    step: int
    question: str
    gold: str
    text: str
    left_out: int
    rewards: list[tuple[str, str]]


def pairs(record: Record) -> tuple[list[Pair], list[tuple[bool, bool]]]:
    """Some questions with both replies, and (right before, right after) of all of them."""
    before = _by_question(record.replies["before"])
    both = [
        (earlier, later)
        for question, later in _by_question(record.replies["after"]).items()
        if (earlier := before.get(question)) is not None
    ]
    rights = [(_good(earlier), _good(later)) for earlier, later in both]
    picked = []
    for kind, count in SHOWN.items():
        of_kind = [pair for pair, right in zip(both, rights, strict=True) if right == kind]
        picked += [_pair(earlier, later) for earlier, later in of_kind[:count]]
    return picked, rights


def _by_question(rows: Sequence[Row]) -> dict[str, Row]:
    """The first reply to each question."""
    found: dict[str, Row] = {}
    for row in rows:
        if _good_key(row) in row and ("reply" in row or "text" in row):
            found.setdefault(_question(row), row)
    return found


def _question(row: Row) -> str:
    question = row.get("question", row.get("prompt", ""))
    if isinstance(question, list) and question and isinstance(question[-1], dict):
        question = question[-1].get("content", "")
    return str(question)


def _good_key(row: Row) -> str:
    return "french" if "french" in row else "strict"


def _good(row: Row) -> bool:
    return (number(row[_good_key(row)]) or 0.0) >= 0.5


def _pair(earlier: Row, later: Row) -> Pair:
    gold = later.get("answer", earlier.get("answer", ""))
    return Pair(_question(later), str(gold), _reply(earlier), _reply(later))


def _reply(row: Row) -> Reply:
    good, tokens = _good(row), number(row.get("tokens"))
    if "french" in row:
        mark = "in French" if good else "not in French"
    elif good:
        mark = "right"
    elif number(row.get("lenient")):
        mark = "right number, wrong format"
    else:
        mark = "wrong"
    text, left_out = shorten(str(row.get("reply", row.get("text", ""))))
    return Reply(text, left_out, None if tokens is None else int(tokens), good, mark)


def rollouts(record: Record) -> list[Rollout]:
    """The first completion kept at a few steps, evenly spread from the first to the last."""
    first: dict[int, Row] = {}
    for row in record.samples:
        step = number(row.get("step"))
        if step is not None and "completion" in row:
            first.setdefault(int(step), row)
    steps = sorted(first)
    last = len(steps) - 1
    places = sorted({round(i * last / (ROLLOUT_STEPS - 1)) for i in range(ROLLOUT_STEPS)})
    return [_rollout(steps[place], first[steps[place]]) for place in places if steps]


def _rollout(step: int, row: Row) -> Rollout:
    text, left_out = shorten(str(row["completion"]))
    rewards = []
    for key, value in row.items():
        if key.startswith("reward/"):
            score = number(value)
            name = key.removeprefix("reward/").replace("_", " ")
            rewards.append((name, "not scored" if score is None else f"{score:g}"))
    return Rollout(step, _question(row), str(row.get("answer", "")), text, left_out, rewards)


def shorten(text: str) -> tuple[str, int]:
    """A long text without its middle, and how many characters that left out."""
    left_out = len(text) - HEAD - TAIL
    if left_out <= 40:
        return text, 0
    return f"{text[:HEAD]} […] {text[-TAIL:]}", left_out
