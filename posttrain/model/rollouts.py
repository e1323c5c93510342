"""Rollouts that cost less than a trainer's own, the same tokens, and what they were sampled with.

They come from merged weights (see merged.py). Where what was read can be kept (see prompts.py), a
prompt is read once for its group, and completions that have ended leave the batch.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.model.inference import Draft, Writer
from posttrain.model.merged import sampling_weights
from posttrain.model.runtime import restored


class SampledLogProbs:
    """A logits processor that notes the log-probability of each token that the model draws."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._next: Any = None  # log-probabilities of the next token, (B, vocabulary)
        self._noted: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """input_ids (B, tokens so far), scores (B, vocabulary), which are returned as they are."""
        self._note(input_ids)
        self._next = (scores / self._temperature).log_softmax(-1)
        return scores

    def _note(self, input_ids: Any) -> None:
        if self._next is not None:
            self._noted.append(self._next.gather(1, input_ids[:, -1:]))

    def noted(self, input_ids: Any) -> list[list[float]]:
        """The log-probabilities of each row's new tokens, the last of `input_ids`."""
        import torch

        self._note(input_ids)
        log_probs: list[list[float]] = torch.cat(self._noted, 1).tolist()
        return log_probs


class Sampler:
    """A logits processor that samples, too: a row that leaves the batch changes nothing for others.

    Random numbers are drawn for every row that the batch once had. The tokens are those that
    torch.multinomial would have drawn for all of them, as the largest of the scores returned.
    """

    def __init__(self, temperature: float, count: int) -> None:
        self._temperature, self._count = temperature, count
        self.drafts: Sequence[Draft] = ()  # of the batch; the log-probabilities are noted in them

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores (B, vocabulary) -> probabilities over random numbers, of the same shape."""
        import torch

        probabilities = (scores / self._temperature).softmax(-1)
        noise = torch.empty(self._count, scores.shape[1]).exponential_()
        scores = probabilities / noise[[draft.row for draft in self.drafts]]
        drawn = probabilities.gather(1, scores.argmax(-1, keepdim=True))[:, 0].log()
        for draft, log_prob in zip(self.drafts, drawn.tolist(), strict=True):
            if not draft.ended:
                draft.log_probs.append(log_prob)
        return scores


@contextlib.contextmanager
def cheaper_rollouts(policy: Any, temperature: float, plain: bool) -> Iterator[list[list[float]]]:
    """Let the policy's generate() write rollouts in the cheaper way inside of the block.

    `plain`: tokens are sampled at this temperature and in no other way, so that rows may be written
    in rounds; on a GPU, where decoding takes as long for few rows as for many, they are not. The
    block gets a list that is filled with the log-probabilities of each row's new tokens.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LogitsProcessorList

    generate = policy.generate
    noted: list[list[float]] = []

    def at_once(**arguments: Any) -> Any:
        sampled = SampledLogProbs(temperature)
        ids = generate(logits_processor=LogitsProcessorList([sampled]), **arguments)
        noted.extend(sampled.noted(ids))
        return ids

    def in_rounds(input_ids: Any, attention_mask: Any, generation_config: Any, **_: Any) -> Any:
        config = copy.copy(generation_config)
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
        prompts = zip(input_ids, attention_mask.bool(), strict=True)
        drafts = [Draft(ids[kept].tolist(), row=row) for row, (ids, kept) in enumerate(prompts)]
        sampler = Sampler(temperature, len(drafts))
        Writer(policy, generate, config, keep=True, sampler=sampler).write(drafts, len(drafts))
        noted.extend(draft.log_probs for draft in drafts)
        replies = [torch.tensor(draft.reply) for draft in drafts]
        new = pad_sequence(replies, batch_first=True, padding_value=config.pad_token_id)
        return torch.cat([input_ids, new], 1)

    with restored(vars(policy), "generate"), sampling_weights(policy):
        policy.generate = in_rounds if plain and policy.device.type == "cpu" else at_once
        yield noted
