"""The length of pairs in tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.data.render import render, repeated_opening, token_lengths


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
    """The token lengths of each pair.

    Raises:
        DataError: replies repeat what their rendered prompt ends with.
    """
    prompts = [render(tokenizer, pair.prompt) for pair in pairs]
    _refuse_repeated(pairs, prompts, tokenizer)
    columns = (prompts, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    return [Lengths(*row) for row in zip(*(_counts(tokenizer, c) for c in columns), strict=True)]


def _refuse_repeated(pairs: Sequence[Pair], prompts: Sequence[str], tokenizer: Any) -> None:
    repeated = [
        (pair, opening)
        for pair, prompt in zip(pairs, prompts, strict=True)
        for reply in (pair.chosen, pair.rejected)
        if (opening := repeated_opening(tokenizer, pair.prompt, prompt, reply))
    ]
    if repeated:
        pair, opening = repeated[0]
        raise DataError(
            f"{pair.where}: a reply begins with {opening!r}, which the chat template has already "
            f"written at the end of the prompt, and {len(repeated)} of {2 * len(pairs)} replies do "
            "so: it would be trained twice. Remove it from the start of these replies, or, if the "
            "template has a variable that leaves it out, set prompt.chat_template_kwargs"
        )


def _counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text. Repeated texts are tokenised once."""
    unique = list(dict.fromkeys(texts))
    count = dict(zip(unique, token_lengths(tokenizer, unique), strict=True))
    return [count[text] for text in texts]
