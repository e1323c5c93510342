"""The length of pairs in tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.preference import Pair
from posttrain.data.render import render, token_lengths


class Lengths(NamedTuple):
    """Tokens of a pair's parts: the rendered prompt, and each reply without its EOS."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def whole(self) -> int:
        """Prompt, longer reply and its EOS together: this has to fit the limit."""
        return self.prompt + max(self.chosen, self.rejected) + 1


def measure(pairs: Sequence[Pair], tokenizer: Any) -> list[Lengths]:
    """The token lengths of each pair."""
    columns = (
        [render(tokenizer, pair.conversation) for pair in pairs],
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
    )
    return [Lengths(*row) for row in zip(*(_counts(tokenizer, c) for c in columns), strict=True)]


def _counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text. Repeated texts are tokenised once."""
    unique = list(dict.fromkeys(texts))
    count = dict(zip(unique, token_lengths(tokenizer, unique), strict=True))
    return [count[text] for text in texts]
