"""The two rewards of GRPO on GSM8K: the form of the answer, and its value.

Both have trl's signature, `f(completions, **columns) -> list[float | None]`: one value a
completion, None where a completion cannot be scored. Both are pure and never raise. A completion
is a string, or a list of messages of which the last assistant message's text is read; anything
else is an empty completion. trl strips special tokens before it calls a reward, so neither sees
the end-of-sequence token.

Their sum is 0, 1, 2 or 3. Correctness weighs twice format: a right number is worth more than the
right shape around a wrong one, and format alone cannot pay for giving up on the problem.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, repeat

from rewards.answer import ends_with_answer, extract_tagged, parse_number

FORMAT_REWARD = 1.0
CORRECTNESS_REWARD = 2.0


def format_reward(
    completions: Sequence[object], answer: object = None, **columns: object
) -> list[float | None]:
    """1.0 if the last line is exactly `<answer>NUMBER</answer>`, else 0.0, whatever the number.
    White space after it is dropped first; `answer` and the other columns are not read."""
    return [FORMAT_REWARD if ends_with_answer(_text(c)) else 0.0 for c in completions]


def correctness_reward(
    completions: Sequence[object], answer: Sequence[object], **columns: object
) -> list[float | None]:
    """2.0 if the completion's one `<answer>` element holds the gold number, else 0.0.

    `answer` holds one gold a completion, each a NUMBER as a string ("72", "1,234"). The reward is
    None, never 0.0, where the gold is missing or is not a NUMBER: nobody could have been right.
    """
    return [
        _correctness(_text(completion), gold)
        for completion, gold in zip(completions, chain(answer, repeat(None)), strict=False)
    ]


def _correctness(text: str, gold: object) -> float | None:
    expected = parse_number(gold)
    if expected is None:
        return None
    return CORRECTNESS_REWARD if extract_tagged(text) == expected else 0.0


def _text(completion: object) -> str:
    """The text a completion is judged on: "" where it holds none."""
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, Sequence):
        return ""
    for message in reversed(completion):
        if isinstance(message, Mapping) and message.get("role", "assistant") == "assistant":
            content = message.get("content")
            return content if isinstance(content, str) else ""
    return ""
