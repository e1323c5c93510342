"""The check of an exported file: does it behave like the trained model?

The adapter on its base, in float32, is the reference of every file. At each token of its greedy
replies, the file's distribution of the next token is compared with the reference's: rounding moves
a distribution a little, a wrong file moves it a lot. Replies themselves are not compared: those of
a correct file fork at near ties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval import Conversation
from posttrain.data.render import render, token_ids
from posttrain.export.models import Model, Row, TorchModel
from posttrain.export.proof import at_most
from posttrain.export.texts import strings, template_cases
from posttrain.run.results import Check

NEAR_TIE = 0.5
"""Nats by which the token that a file writes may be less probable than its best one: computing one
token after another adds in a different order than computing a complete text."""
SMALLEST = 1e-6
"""The least probability of all tokens that are not listed."""


@dataclass(frozen=True)
class Known:
    """The greedy replies and distributions of the reference."""

    conversations: list[Conversation]
    tokenizer: Any
    prompts: list[list[int]]
    replies: list[list[int]]
    rows: list[list[Row]]
    """For each reply, one row per token."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its reply."""
        return max(map(len, self.prompts)) + max(map(len, self.replies))


def reference(model: TorchModel, conversations: list[Conversation], new_tokens: int) -> Known:
    """The greedy replies of the adapter, of at most `new_tokens`, with its distributions."""
    prompts = [model.tokenize(model.render(each)) for each in conversations]
    replies = model.greedy(prompts, new_tokens)
    rows = [model.rows(p, r) for p, r in zip(prompts, replies, strict=True)]
    return Known(conversations, model.tokenizer, prompts, replies, rows)


def check_model(file: Model, known: Known, limit: float) -> list[Check]:
    """Compare a file with the reference; `limit` is that of the divergence."""
    cases = template_cases(known.conversations, known.tokenizer)
    prompts = [render(known.tokenizer, case, today=True) for case in cases]
    all_texts = [*strings(known.tokenizer), *prompts]
    ids = token_ids(known.tokenizer, all_texts)
    rendered = sum(file.render(c) != p for c, p in zip(cases, prompts, strict=True))
    tokenised = sum(file.tokenize(text) != row for text, row in zip(all_texts, ids, strict=True))
    rows = [file.rows(p, r) for p, r in zip(known.prompts, known.replies, strict=True)]
    divergences = [
        divergence(expected, actual)
        for pair in zip(known.rows, rows, strict=True)
        for expected, actual in zip(*pair, strict=True)
    ]
    replies = file.greedy(known.prompts, max(map(len, known.replies)))
    wrong = sum(map(_wrong, known.replies, rows, replies))
    return [
        at_most("chat_template", rendered, 0, of=len(prompts)),
        at_most("tokenisation", tokenised, 0, of=len(all_texts)),
        at_most("divergence", sum(divergences) / len(divergences), limit),
        at_most("greedy_text", wrong, 0, of=len(replies)),
    ]


def divergence(expected: Row, actual: Row) -> float:
    """Kullback-Leibler divergence of a distribution from the expected one, in nats.

    Over the most probable tokens of the expected one, and all others as one outcome: a lower bound
    of that over the vocabulary. A token not listed in `actual` counts as its least probable one.
    """
    least = min(actual.values())
    actual = {token: actual.get(token, least) for token in expected}
    total = sum(math.exp(p) * (p - actual[token]) for token, p in expected.items())
    rest, actual_rest = (
        max(1 - sum(map(math.exp, row.values())), SMALLEST) for row in (expected, actual)
    )
    return total + rest * math.log(rest / actual_rest)


def _wrong(expected: Sequence[int], rows: list[Row], reply: list[int]) -> bool:
    """Whether the first token that differs is not among the file's most probable ones, or the reply
    does not end where it should. What follows that token cannot be compared."""
    for row, token, written in zip(rows, expected, reply, strict=False):
        if written != token:
            return row.get(written, -math.inf) < max(row.values()) - NEAR_TIE
    return len(reply) != len(expected)
