"""Log-probabilities of replies under the policy or its reference."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from eval import Conversation
from eval.preference import Pair
from posttrain.base.errors import HealthError
from posttrain.base.progress import progress_bar
from posttrain.data.render import render
from posttrain.model.device import ROWS_AT_ONCE
from posttrain.model.prompts import shared
from posttrain.model.runtime import inference_mode, restored

NOT_SCORED = -100  # the label of a token without a score, in transformers and trl


def pair_log_probs(
    policy: Any, tokenizer: Any, pairs: Sequence[Pair], batch_size: int | None, reference: bool
) -> list[tuple[float, float]]:
    """Log-probability of (chosen, rejected) of each pair, given the prompt, in nats: the sum over
    the reply's tokens, EOS included. The rest is as for token_log_probs."""
    replies = [(pair.conversation, r) for pair in pairs for r in (pair.chosen, pair.rejected)]
    sequences = reply_sequences(tokenizer, replies)
    scores = token_log_probs(policy, tokenizer, sequences, batch_size, reference, "pairs")
    sums = [math.fsum(tokens) for tokens in scores]
    return list(zip(sums[::2], sums[1::2], strict=True))


def reply_sequences(
    tokenizer: Any, rows: Sequence[tuple[Conversation, str]]
) -> list[tuple[list[int], int]]:
    """Token ids of prompt, reply and EOS, and how many of them are the prompt's, of each row."""
    sequences = []
    for turns, text in rows:
        prompt, reply = render(tokenizer, turns), text + tokenizer.eos_token
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = tokenizer(prompt + reply, add_special_tokens=False)["input_ids"]
        sequences.append((ids, shared(prompt_ids, ids)))
    return sequences


def token_log_probs(
    policy: Any,
    tokenizer: Any,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int | None,
    reference: bool,
    what: str,
) -> list[list[float]]:
    """Log-probability, in nats, of each token of each sequence, given as (ids, n), but its first n.
    `reference` scores with the reference instead of the policy. Raises HealthError if one is not
    finite."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    size = batch_size or ROWS_AT_ONCE
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]), reverse=True)
    scores: list[list[float]] = [[] for _ in sequences]
    # With the adapter off, or as it started (posttrain/model/adapter.py).
    scorer = policy.disable_adapter() if reference else contextlib.nullcontext()
    what = f"scoring {what} (reference)" if reference else f"scoring {what}"
    with (
        inference_mode(policy),
        scorer,
        chunked_head(policy),
        progress_bar(what, len(sequences)) as bar,
    ):
        for start_at in range(0, len(order), size):
            batch = order[start_at : start_at + size]
            rows = [torch.tensor(sequences[i][0]) for i in batch]
            # (B, L), padded on the right: causal attention keeps the padding out of every score.
            ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            labels = ids.masked_fill(mask == 0, NOT_SCORED)
            for row, i in enumerate(batch):
                labels[row, : sequences[i][1]] = NOT_SCORED
            ids, mask, labels = (part.to(policy.device) for part in (ids, mask, labels))
            log_probs = policy(
                input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True
            ).log_probs  # (B, L - 1), of each token but the first
            for row, i in enumerate(batch):
                sequence, prompt_length = sequences[i]
                scores[i] = log_probs[row, prompt_length - 1 : len(sequence) - 1].tolist()
            bar.update(len(batch))
    if not all(math.isfinite(value) for row in scores for value in row):
        raise HealthError(
            f"{what}: a log-probability is not finite; lower training.learning_rate, or set "
            "model.dtype=float32"
        )
    return scores


@contextlib.contextmanager
def chunked_head(policy: Any) -> Iterator[None]:
    """Let the policy score labels by trl's fused head inside of the block, as in training.

    It computes the logits of scored tokens only, some at a time. Those of a complete batch take
    more memory than all the rest: 8 rows x 1,024 tokens x 151,936 words x 2 bytes are 2.5 GB.
    """
    from peft import PeftModel
    from trl.trainer.utils import add_fused_lm_head

    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    with restored(vars(base), "forward"):
        add_fused_lm_head(base)
        yield
