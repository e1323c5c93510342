"""Worked examples of a prompt: never a question of the data, and what they cost."""

from collections.abc import Iterable, Sequence
from typing import Any

from eval import Example, PromptFormat, PromptLike, conversation
from posttrain.base.errors import DataError, quoted
from posttrain.data.render import render, token_lengths
from posttrain.data.text import normalise


def check_examples(examples: Sequence[Example], questions: Iterable[str]) -> None:
    """Check that no worked example is a question of the data, whose answer it would give away.

    Raises:
        DataError: one is.
    """
    numbers = {normalise(example.question): n for n, example in enumerate(examples, start=1)}
    for question in questions if numbers else ():
        if number := numbers.get(normalise(question)):
            raise DataError(
                f"prompt.examples: example {number} is a question of the data "
                f"({quoted(question)}); write another example, or remove the row"
            )


def cost(tokenizer: Any, prompt: PromptLike) -> str:
    """`prompt.examples: 2 worked examples, 180 tokens a prompt`."""
    prompts = [conversation("?", each) for each in (prompt, PromptFormat(prompt.system))]
    with_them, without = token_lengths(tokenizer, [render(tokenizer, each) for each in prompts])
    count = len(prompt.examples)
    what = "1 worked example" if count == 1 else f"{count} worked examples"
    return f"prompt.examples: {what}, {with_them - without} tokens a prompt"
