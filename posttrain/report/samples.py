"""Which replies a page shows: picked by a rule, not by hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.gsm8k import ScoredReply
from eval.replies import PromptReply
from eval.rewarded import RewardedReply
from posttrain.run.record import Logged, Run, Scored, number

# How many to show of (right before, right after), or by rewards (no worse before, no worse after):
# the first of each kind, in the file's order.
SHOWN = {(False, True): 3, (True, False): 2, (False, False): 1, (True, True): 1}
ROLLOUT_STEPS = 4
HEAD, TAIL = 420, 260  # characters kept of a long reply; the answer is at its end


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: int
    good: bool | None
    """None where rewards scored it: they know of more than right and wrong."""
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
    rewards: list[tuple[str, str]]


def pairs(run: Run) -> list[Pair]:
    """Some questions with both replies."""
    shown = []
    for kind, count in SHOWN.items():
        of_kind = [both for both in _answered(run) if _rights(*both) == kind]
        shown += [_pair(*both) for both in of_kind[:count]]
    return shown


def flips(run: Run) -> list[tuple[str, int]]:
    """How many replies changed which way."""
    counts = Counter(_rights(*both) for both in _answered(run))
    if run.text_answers:
        return [
            ("earned more after", counts[False, True]),
            ("earned less after", counts[True, False]),
            ("earned the same", counts[True, True]),
        ]
    good, bad = (
        ("right language", "another language") if run.method == "DPO" else ("right", "wrong")
    )
    return [
        (f"{bad} before, {good} after", counts[False, True]),
        (f"{good} before, {bad} after", counts[True, False]),
        (f"{good} both times", counts[True, True]),
        (f"{bad} both times", counts[False, False]),
    ]


def _answered(run: Run) -> list[tuple[Scored, Scored]]:
    """The first reply to each question before and after training."""
    before, after = (_by_question(run.replies[side]) for side in ("before", "after"))
    return [(before[question], reply) for question, reply in after.items() if question in before]


def _by_question(replies: Sequence[Scored]) -> dict[str, Scored]:
    first: dict[str, Scored] = {}
    for reply in replies:
        first.setdefault(_question(reply), reply)
    return first


def _question(reply: Scored) -> str:
    return reply.prompt if isinstance(reply, PromptReply) else reply.question


def _rights(earlier: Scored, later: Scored) -> tuple[bool, bool]:
    if isinstance(earlier, RewardedReply) and isinstance(later, RewardedReply):
        gain = (later.total_reward or 0.0) - (earlier.total_reward or 0.0)
        return gain <= 0, gain >= 0
    return _good(earlier) is True, _good(later) is True


def _good(reply: Scored) -> bool | None:
    if isinstance(reply, RewardedReply):
        return None
    return reply.strict >= 0.5 if isinstance(reply, ScoredReply) else reply.in_language


def _pair(earlier: Scored, later: Scored) -> Pair:
    gold = "" if isinstance(later, PromptReply) else later.answer
    return Pair(_question(later), gold, _reply(earlier), _reply(later))


def _reply(reply: Scored) -> Reply:
    good = _good(reply)
    if isinstance(reply, PromptReply):
        mark = "right language" if good else "another language"
        return Reply(reply.text, reply.tokens, good, mark)
    if isinstance(reply, RewardedReply):
        total = reply.total_reward
        mark = "not scored" if total is None else f"total reward {total:.4g}"
    elif good:
        mark = "right"
    else:
        mark = "right number, wrong format" if reply.lenient else "wrong"
    return Reply(reply.reply, reply.tokens, good, mark)


def rollouts(run: Run) -> list[Rollout]:
    """The first completion kept at a few steps, evenly spread from the first to the last."""
    first: dict[int, Logged] = {}
    for row in run.samples:
        step = number(row.get("step"))
        if step is not None and "completion" in row:
            first.setdefault(int(step), row)
    steps = sorted(first)
    last = len(steps) - 1
    indices = sorted({round(i * last / (ROLLOUT_STEPS - 1)) for i in range(ROLLOUT_STEPS)})
    return [_rollout(steps[index], first[steps[index]]) for index in indices if steps]


def _rollout(step: int, row: Logged) -> Rollout:
    rewards = []
    for key, value in row.items():
        if key.startswith("reward/"):
            score = number(value)
            name = key.removeprefix("reward/").replace("_", " ")
            rewards.append((name, "not scored" if score is None else f"{score:g}"))
    question, gold = str(row.get("question", "")), str(row.get("answer", ""))
    return Rollout(step, question, gold, str(row["completion"]), rewards)


def shorten(text: str) -> tuple[str, int]:
    """A long text without its middle, and how many characters that left out."""
    left_out = len(text) - HEAD - TAIL
    if left_out <= 40:
        return text, 0
    return f"{text[:HEAD]} […] {text[-TAIL:]}", left_out
