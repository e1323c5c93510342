"""The length of pairs in tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.preference import Pair
from posttrain.data.render import refuse_repeated, render, token_lengths


class Lengths(NamedTuple):
    """Tokens of a pair's parts: the rendered prompt, and each reply without its EOS."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        """Prompt, longer reply and its EOS together: this has to fit the limit."""
        return self.prompt + max(self.chosen, self.rejected) + 1


def measure(pairs: Sequence[Pair], tokenizer: Any) -> list[Lengths]:
    """The token lengths of each pair.

    Raises:
        DataError: replies repeat what their rendered prompt ends with.
    """
    prompts = [render(tokenizer, pair.conversation) for pair in pairs]
    refuse_repeated(
        tokenizer,
        (
            (pair.where, pair.conversation, prompt, reply)
            for pair, prompt in zip(pairs, prompts, strict=True)
            for reply in (pair.chosen, pair.rejected)
        ),
    )
    parts = [prompts, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    lengths = (token_lengths(tokenizer, texts) for texts in parts)
    return [Lengths(*row) for row in zip(*lengths, strict=True)]
