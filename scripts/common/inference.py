"""Run the policy without training it: render prompts, generate replies, score given replies."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from eval import Completion, Conversation, Generate, Message
from eval.preference import Pair
from scripts.common.policy import inference_mode
from scripts.common.progress import progress_bar
from scripts.common.settings import Evaluation


def render(tokenizer: Any, conversation: Sequence[Message]) -> str:
    """The prompt as text, up to where the reply starts."""
    text: str = tokenizer.apply_chat_template(
        list(conversation), tokenize=False, add_generation_prompt=True
    )
    return text


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens in each text, special tokens written in it counted as such."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def generator(policy: Any, tokenizer: Any, evaluation: Evaluation, seed: int) -> Generate:
    """A generate function over the policy, with its adapter on.

    Prompts are batched by length and padded on the left. Greedy at temperature 0; above it the
    sampling is seeded and leaves the training's random state alone.
    """
    import torch
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if evaluation.temperature > 0:
        sampling = {"do_sample": True, "temperature": evaluation.temperature, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=evaluation.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        texts = [render(tokenizer, conversation) for conversation in conversations]
        lengths = token_lengths(tokenizer, texts)
        order = sorted(range(len(texts)), key=lambda i: lengths[i], reverse=True)
        replies: dict[int, Completion] = {}
        with (
            inference_mode(policy),
            torch.random.fork_rng(),
            progress_bar("answering", len(texts)) as bar,
        ):
            torch.manual_seed(seed)
            for start_at in range(0, len(order), evaluation.batch_size):
                batch = order[start_at : start_at + evaluation.batch_size]
                inputs = tokenizer(
                    [texts[i] for i in batch],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=False,
                ).to(policy.device)
                output = policy.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    generation_config=config,
                )
                new = output[:, inputs["input_ids"].shape[1] :].tolist()
                for i, ids in zip(batch, new, strict=True):
                    replies[i] = _completion(tokenizer, ids)
                bar.update(len(batch))
        return [replies[i] for i in range(len(texts))]

    return generate


def _completion(tokenizer: Any, ids: list[int]) -> Completion:
    """Token ids as generated, padding and all -> a Completion."""
    ended = tokenizer.eos_token_id in ids
    if ended:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return Completion(text=text, tokens=len(ids), truncated=not ended)


def pair_log_probs(
    policy: Any, tokenizer: Any, pairs: Sequence[Pair], batch_size: int, reference: bool
) -> list[tuple[float, float]]:
    """Summed log-probability, in nats, of (chosen, rejected) with its EOS given the prompt.

    Scored by the policy, or with the adapter off by the reference.
    """
    import torch

    rows = [
        (render(tokenizer, pair.prompt), reply + tokenizer.eos_token)
        for pair in pairs
        for reply in (pair.chosen, pair.rejected)
    ]
    sequences: list[tuple[list[int], int]] = []
    for prompt, reply in rows:
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = tokenizer(prompt + reply, add_special_tokens=False)["input_ids"]
        sequences.append((ids, _common_prefix(prompt_ids, ids)))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]), reverse=True)
    scores = [0.0] * len(sequences)
    adapter: Callable[[], contextlib.AbstractContextManager[Any]] = (
        policy.disable_adapter if reference else contextlib.nullcontext
    )
    what = "scoring pairs (reference)" if reference else "scoring pairs"
    with inference_mode(policy), adapter(), progress_bar(what, len(sequences)) as bar:
        for start_at in range(0, len(order), batch_size):
            batch = order[start_at : start_at + batch_size]
            width = len(sequences[batch[0]][0])
            # (B, L), padded on the right: causal attention keeps the padding out of every score.
            ids = torch.tensor(
                [
                    sequences[i][0] + [tokenizer.pad_token_id] * (width - len(sequences[i][0]))
                    for i in batch
                ]
            )
            mask = torch.tensor(
                [[1] * len(sequences[i][0]) + [0] * (width - len(sequences[i][0])) for i in batch]
            )
            ids, mask = ids.to(policy.device), mask.to(policy.device)
            logits = policy(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, i in enumerate(batch):
                whole, prompt_length = sequences[i]
                steps = slice(prompt_length - 1, len(whole) - 1)
                targets = ids[row, prompt_length : len(whole)]
                log_probs = logits[row, steps].float().log_softmax(-1)
                scores[i] = float(log_probs.gather(-1, targets[:, None]).double().sum())
            bar.update(len(batch))
    return list(zip(scores[::2], scores[1::2], strict=True))


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
