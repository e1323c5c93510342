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
    """The shortest pair, the one of median length and the longest, in that order, each as
    `{"where", "masked": [text of each token], "chosen": [...], "rejected": [...]}`. The masked
    tokens are those of the prompt: they get no loss. Both replies end with one EOS."""
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]] if order else [])
    examples = []
    for pair in (pairs[index] for index in chosen):
        parts = _divided(tokenizer, pair.conversation, pair.chosen, pair.rejected)
        masked, good, bad = (token_texts(tokenizer, ids) for ids in parts)
        examples.append({"where": pair.where, "masked": masked, "chosen": good, "rejected": bad})
    return examples


def show_reply(turns: Conversation, reply: str, tokenizer: Any) -> str:
    """A prompt, and its reply token by token, each in brackets: these have a loss."""
    prompt, ids = _divided(tokenizer, turns, reply)
    shown = "".join(f"[{text}]" for text in token_texts(tokenizer, ids))
    counts = f"{len(prompt)} tokens without a loss, {len(ids)} with one"
    return f"\nfirst row ({counts}):\n{tokenizer.decode(prompt)}{shown}\n"


def _divided(tokenizer: Any, turns: Conversation, *replies: str) -> list[list[int]]:
    """The token ids of the prompt and of each reply with EOS."""
    prompt = render(tokenizer, turns)
    texts = [prompt, *(prompt + reply + tokenizer.eos_token for reply in replies)]
    alone, *full = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # As in trl, a reply starts at the first token in which the prompt with and without it differ.
    same = (all(ids[n] == token for ids in full) for n, token in enumerate(alone))
    start = next((n for n, alike in enumerate(same) if not alike), len(alone))
    return [alone[:start], *(ids[start:] for ids in full)]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token. Tokens that share a character give one text."""
    texts: list[str] = []
    waiting: list[int] = []
    for index, number in enumerate(ids, start=1):
        waiting.append(number)
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if "\ufffd" not in text or len(waiting) == MOST_BYTES or index == len(ids):
            texts.append(text)
            waiting = []
    return texts
