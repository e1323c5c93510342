"""Show pairs as the trainer sees them: the text of each token, and which tokens get no loss."""

from collections.abc import Sequence
from typing import Any

from eval import Conversation
from eval.preference import Pair
from posttrain.data.render import render

MOST_BYTES = 4  # of a character in UTF-8; each byte may be a token


def render_examples(
    pairs: Sequence[Pair], lengths: Sequence[int], tokenizer: Any
) -> list[dict[str, Any]]:
    """The shortest pair, the one of median length and the longest, in that order."""
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]] if order else [])
    return [render_example(pairs[index], tokenizer) for index in chosen]


def render_example(pair: Pair, tokenizer: Any) -> dict[str, Any]:
    """`{"where", "masked": [text of each token], "chosen": [...], "rejected": [...]}`.

    The masked tokens are those of the prompt: they get no loss. Both replies end with one EOS. As
    in trl, a reply starts at the first token in which the prompt with and without it differ.
    """
    prompt = render(tokenizer, pair.conversation)
    replies = (prompt + reply + tokenizer.eos_token for reply in (pair.chosen, pair.rejected))
    texts = [prompt, *replies]
    alone, chosen, rejected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    masked = 0
    while masked < len(alone) and alone[masked] == chosen[masked] == rejected[masked]:
        masked += 1
    return {
        "where": pair.where,
        "masked": token_texts(tokenizer, alone[:masked]),
        "chosen": token_texts(tokenizer, chosen[masked:]),
        "rejected": token_texts(tokenizer, rejected[masked:]),
    }


def show_reply(turns: Conversation, reply: str, tokenizer: Any) -> str:
    """A prompt, and its reply token by token, each in brackets: these have a loss."""
    prompt = render(tokenizer, turns)
    texts = [prompt, prompt + reply + tokenizer.eos_token]
    alone, full = tokenizer(texts, add_special_tokens=False)["input_ids"]
    start = next((n for n, (a, b) in enumerate(zip(alone, full, strict=False)) if a != b), None)
    start = len(alone) if start is None else start
    shown = "".join(f"[{text}]" for text in token_texts(tokenizer, full[start:]))
    counts = f"{start} tokens without a loss, {len(full) - start} with one"
    return f"\nfirst row ({counts}):\n{tokenizer.decode(full[:start])}{shown}\n"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token. Tokens that share a character give one text."""
    texts: list[str] = []
    waiting: list[int] = []
    for number in ids:
        waiting.append(number)
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if "\ufffd" not in text or len(waiting) == MOST_BYTES:
            texts.append(text)
            waiting = []
    if waiting:
        texts.append(tokenizer.decode(waiting, clean_up_tokenization_spaces=False))
    return texts
