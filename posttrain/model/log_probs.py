"""Log-probabilities of replies under the policy or its reference."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from eval.preference import Pair
from posttrain.base.progress import progress_bar
from posttrain.data.render import render
from posttrain.model.adapter import reference_mode
from posttrain.model.policy import inference_mode


def pair_log_probs(
    policy: Any, tokenizer: Any, pairs: Sequence[Pair], batch_size: int, reference: bool
) -> list[tuple[float, float]]:
    """Log-probability of (chosen, rejected) of each pair, given the prompt, in nats.

    It is the sum over the reply's tokens, EOS included. `reference` scores with the reference
    instead of the policy.
    """
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
    scores = token_log_probs(policy, tokenizer, sequences, batch_size, reference, "pairs")
    sums = [math.fsum(tokens) for tokens in scores]
    return list(zip(sums[::2], sums[1::2], strict=True))


def token_log_probs(
    policy: Any,
    tokenizer: Any,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    reference: bool,
    what: str,
) -> list[list[float]]:
    """Log-probability, in nats, of each token of each sequence but its first `n`.

    `sequences` holds (ids, n). `reference` scores with the reference instead of the policy.
    """
    import torch

    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]), reverse=True)
    scores: list[list[float]] = [[] for _ in sequences]
    scorer = reference_mode(policy) if reference else contextlib.nullcontext()
    what = f"scoring {what} (reference)" if reference else f"scoring {what}"
    with inference_mode(policy), scorer, progress_bar(what, len(sequences)) as bar:
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
                scores[i] = log_probs.gather(-1, targets[:, None])[:, 0].tolist()
            bar.update(len(batch))
    return scores


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
