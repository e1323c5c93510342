"""Score replies by rewards, for problems whose answer is text: only the rewards of
whoever made the problems decide what is right there.

The measures are what training adds up: the weighted total, and each reward before its weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval import Completion, PromptLike, conversation
from eval.gsm8k import Problem, Reply
from eval.measures import PART, TOTAL
from rewards import RewardFunction, trl_keywords
from rewards import score as call


@dataclass(frozen=True)
class RewardedReply(Reply):
    """A reply and what it earned."""

    total_reward: float | None
    """The sum of the rewards times their weights, without those that could not score; None where
    none could."""
    rewards: dict[str, float | None]
    """What each reward gave, before its weight; None where it could not score the reply."""

    def scores(self) -> dict[str, float | None]:
        names = measure_names(self.rewards)
        parts = {names[name]: value for name, value in self.rewards.items()}
        return {TOTAL: self.total_reward, **parts, "truncated_rate": self.truncated_rate}


@dataclass(frozen=True)
class Scorer:
    """Scores replies by rewards, one at a time: a score depends on no other reply of a batch."""

    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]
    prompt: PromptLike
    """What precedes each question in the prompts that the replies answer."""

    def __call__(self, problem: Problem, completion: Completion, sample: int = 0) -> RewardedReply:
        """Score one reply by each reward, called as in training, with the row of the problem. A
        server's reply has as many token ids as the server counts, each of them 0. Raises
        RewardError as rewards.score()."""
        row = reward_row(problem, self.prompt)
        ids = completion.ids or [0] * (completion.tokens or 0)
        keywords = trl_keywords(row, [completion.text], [ids])
        rewards = {name: call(name, f, keywords)[0] for name, f in self.functions.items()}
        earned = [self.weights[n] * value for n, value in rewards.items() if value is not None]
        total = sum(earned) if earned else None
        return RewardedReply.of(problem, completion, sample, total_reward=total, rewards=rewards)


def reward_row(problem: Problem, prompt: PromptLike) -> dict[str, Any]:
    """What trl gets of a problem: its prompt, and the columns that the rewards read."""
    own = {"question": problem.question, "answer": problem.answer}
    return {"prompt": conversation(problem.question, prompt), **own, **problem.columns}


def measure_names(rewards: Mapping[str, Any]) -> dict[str, str]:
    """The measure of each reward: `reward:brief` for `my_rewards.py:brief`, with the file where two
    functions have the same name. A slash would part a problem set from a measure."""
    short = [name.rpartition(":")[2] for name in rewards]
    if len(set(short)) < len(short):
        short = [name.replace("/", ".") for name in rewards]
    return {name: f"{PART}{own}" for name, own in zip(rewards, short, strict=True)}
