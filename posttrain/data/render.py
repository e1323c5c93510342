"""Render rows as the text and tokens that the model reads, and drop those over its limit."""

from collections.abc import Sequence
from typing import Any

from eval import Message
from posttrain.base.errors import DataError


def render(tokenizer: Any, conversation: Sequence[Message]) -> str:
    """The prompt as text, up to the start of the reply."""
    text: str = tokenizer.apply_chat_template(
        list(conversation), tokenize=False, add_generation_prompt=True
    )
    return text


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text. A special token in a text counts as one."""
    return [len(ids) for ids in token_ids(tokenizer, texts)]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without those that the tokenizer would add around it."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def drop_overlong(
    rows: Sequence[Any], lengths: Sequence[int], limit: int, rule: str, what: str
) -> list[Any]:
    """The rows that have at most `limit` tokens. The number of dropped rows is printed.

    Raises:
        DataError: a row is too long and `rule` is "error", or no row is left.
    """
    long = [number for number, length in enumerate(lengths, start=1) if length > limit]
    if not long:
        return list(rows)
    if rule == "error":
        first = rows[long[0] - 1].where or f"row {long[0]}"
        raise DataError(
            f"{what}: {first} takes {lengths[long[0] - 1]} tokens and {len(long)} of "
            f"{len(rows)} rows are over the limit of {limit}. Raise model.max_seq_length, or set "
            "data.overlong=drop to leave them out"
        )
    if len(long) == len(rows):
        raise DataError(f"{what}: all {len(rows)} rows are over the limit of {limit} tokens")
    print(f"{what}: dropped {len(long)} of {len(rows)} rows over {limit} tokens (data.overlong)")
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
