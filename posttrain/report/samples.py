"""Which replies a page shows, picked by a rule, and what it says of each."""

from collections import Counter
from collections.abc import Sequence

from eval.gsm8k import ScoredReply
from eval.replies import PromptReply
from eval.rewarded import RewardedReply
from posttrain.run.record import Logged, Run, Scored, number

# How many to show of (right before, right after), or by rewards (no worse before, no worse after):
# the first of each kind, in the file's order.
SHOWN = {(False, True): 3, (True, False): 2, (False, False): 1, (True, True): 1}
ROLLOUT_STEPS = 4
HEAD, TAIL = 420, 260  # characters kept of a long reply; the answer is at its end


def pairs(run: Run) -> list[tuple[Scored, Scored]]:
    """Replies to the same question before and after training, of a few questions."""
    shown = []
    for kind, count in SHOWN.items():
        shown += [both for both in _answered(run) if _rights(*both) == kind][:count]
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
    return [(before[key], reply) for key, reply in after.items() if key in before]


def _by_question(replies: Sequence[Scored]) -> dict[str, Scored]:
    first: dict[str, Scored] = {}
    for reply in replies:
        first.setdefault(question(reply), reply)
    return first


def _rights(earlier: Scored, later: Scored) -> tuple[bool, bool]:
    if isinstance(earlier, RewardedReply) and isinstance(later, RewardedReply):
        gain = (later.total_reward or 0.0) - (earlier.total_reward or 0.0)
        return gain <= 0, gain >= 0
    return good(earlier) is True, good(later) is True


def question(reply: Scored) -> str:
    return reply.prompt if isinstance(reply, PromptReply) else reply.question


def gold(reply: Scored) -> str:
    return "" if isinstance(reply, PromptReply) else reply.answer


def text(reply: Scored) -> str:
    return reply.text if isinstance(reply, PromptReply) else reply.reply


def good(reply: Scored) -> bool | None:
    """None where rewards scored it: they know of more than right and wrong."""
    if isinstance(reply, RewardedReply):
        return None
    return reply.strict >= 0.5 if isinstance(reply, ScoredReply) else reply.in_language


def mark(reply: Scored) -> str:
    """How a reply was scored."""
    if isinstance(reply, RewardedReply):
        total = reply.total_reward
        return "not scored" if total is None else f"total reward {total:.4g}"
    if isinstance(reply, PromptReply):
        return "right language" if good(reply) else "another language"
    if good(reply):
        return "right"
    return "right number, wrong format" if reply.lenient else "wrong"


def rollouts(run: Run) -> list[tuple[int, Logged]]:
    """Step and row of the first completion kept at a few steps, evenly spread over the run."""
    first: dict[int, Logged] = {}
    for row in run.samples:
        step = number(row.get("step"))
        if step is not None and "completion" in row:
            first.setdefault(int(step), row)
    steps, last = sorted(first), len(first) - 1
    indices = sorted({round(i * last / (ROLLOUT_STEPS - 1)) for i in range(ROLLOUT_STEPS)})
    return [(steps[index], first[steps[index]]) for index in indices if steps]


def earned(row: Logged) -> list[tuple[str, str]]:
    """Each reward of a completion, by its name."""
    rewards = {key[7:]: number(value) for key, value in row.items() if key.startswith("reward/")}
    return [
        (name.replace("_", " "), "not scored" if score is None else f"{score:g}")
        for name, score in rewards.items()
    ]


def shorten(text: str) -> tuple[str, int]:
    """A long text without its middle, and how many characters that left out."""
    left_out = len(text) - HEAD - TAIL
    if left_out <= 40:
        return text, 0
    return f"{text[:HEAD]} […] {text[-TAIL:]}", left_out
