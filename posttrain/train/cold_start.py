"""A cold start: a policy that earns no reward, from which GRPO has nothing to learn."""

import shlex
from collections.abc import Sequence
from typing import Any

from eval.gsm8k import ScoredReply
from posttrain.base.paths import run_command

WAYS_OUT = (
    "GRPO learns only from completions that earn more than others of their group. Give worked "
    "examples in the prompt (prompt.examples), or first train on the model's own right answers "
    "(./run sft; docs/stages.md)"
)


def notice(replies: Sequence[Any], model: str, config: str) -> str | None:
    """The message if no reply before training earned a reward; else None. `model` and `config` are
    as the user named them, for the commands."""
    earned = [reply.as_row()["total_reward"] or 0.0 for reply in replies]
    if not replies or earned[0] > 0 or any(total != earned[0] for total in earned):
        return None  # where rewards differ, one reply earns more than another
    count = len(replies)
    right = ""
    if isinstance(replies[0], ScoredReply):
        lenient = sum(reply.lenient for reply in replies)
        right = f" The last number is right in {lenient / count:.0%} of them."
    run, config = run_command(), shlex.quote(config)
    return (
        f"\nwarning: a cold start: 0 of {count} replies earn a reward.{right} {WAYS_OUT}:\n"
        f"  {run} grpo --config {config} prompt.examples=examples.jsonl\n"
        f"  {run} evaluate --model {shlex.quote(model)} --config {config} --data train "
        "--examples examples.jsonl --samples 8"
    )
