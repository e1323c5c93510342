"""Which replies a page shows, picked by a rule, and what it says of each."""

from collections import Counter

from eval.rewarded import RewardedReply
from posttrain.run.record import Logged, Run, Scored, number
from posttrain.run.results import PromptReply

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
    before, after = dict[str, Scored](), dict[str, Scored]()
    for first, side in ((before, "before"), (after, "after")):
        for reply in run.replies[side]:
            first.setdefault(parts(reply)[0], reply)
    return [(before[key], reply) for key, reply in after.items() if key in before]


def _rights(earlier: Scored, later: Scored) -> tuple[bool, bool]:
    if isinstance(earlier, RewardedReply) and isinstance(later, RewardedReply):
        gain = (later.total_reward or 0.0) - (earlier.total_reward or 0.0)
        return gain <= 0, gain >= 0
    return mark(earlier)[0] is True, mark(later)[0] is True


def parts(reply: Scored) -> tuple[str, str, str]:
    """Question, right answer (empty for a prompt) and text of a reply."""
    if isinstance(reply, PromptReply):
        return reply.prompt, "", reply.text
    return reply.question, reply.answer, reply.reply


def mark(reply: Scored) -> tuple[bool | None, str]:
    """Whether a reply is right (None where rewards scored it: they know of more than right and
    wrong), and how it was scored."""
    if isinstance(reply, RewardedReply):
        total = reply.total_reward
        return None, "not scored" if total is None else f"total reward {total:.4g}"
    if isinstance(reply, PromptReply):
        return reply.in_language, "right language" if reply.in_language else "another language"
    if reply.strict >= 0.5:
        return True, "right"
    return False, "right number, wrong format" if reply.lenient else "wrong"


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
