"""Generate replies with the policy, in batches that fit the memory."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval import Completion, Conversation, Generate
from posttrain.base.progress import progress_bar
from posttrain.data.render import render, token_ids
from posttrain.model.device import free_bytes
from posttrain.model.merged import sampling_weights
from posttrain.model.pretrained import end_tokens
from posttrain.model.prompts import Reader, Rows, continue_rows
from posttrain.model.runtime import inference_mode
from posttrain.settings import Evaluation
from rewards.answer import ends_with_answer

LONGEST_ANSWER = 96  # tokens: enough for an answer element of 64 characters with its tags
# A round ends after at least so many tokens, once this share of its rows has ended: then taking
# rows out and in saves more than it costs.
KEPT_ROUND = (8, 0.25)
READ_AGAIN_ROUND = (32, 0.5)
Stop = Callable[[list[int]], bool]  # whether a reply, as token ids, ends before its end token


@dataclass
class Draft:
    """A reply being written."""

    prompt: list[int]
    reply: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)  # of the reply's tokens, if noted
    ended: bool = False
    row: int = 0  # among the random numbers of a sampler


def generator(policy: Any, tokenizer: Any, evaluation: Evaluation, seed: int) -> Generate:
    """A generate function that uses the policy, with its adapter on and, if it can be, merged.

    Prompts are batched by length. A batch that does not fit the memory is halved and tried again.
    Temperature 0 is greedy; above 0 the sampling is seeded and does not change the training's RNG.
    """
    import torch

    config = generation_config(policy, tokenizer, evaluation)
    stop = at_answers(tokenizer) if evaluation.stop_at_answer else None
    size = evaluation.batch_size or batch_that_fits(policy, evaluation)
    # What is sampled for a row depends on the rows beside it, so these change as seldom as can be.
    keep = evaluation.temperature == 0

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        nonlocal size
        texts = [render(tokenizer, conversation) for conversation in conversations]
        drafts = [Draft(ids) for ids in token_ids(tokenizer, texts)]
        ordered = sorted(drafts, key=lambda draft: len(draft.prompt), reverse=True)
        with (
            inference_mode(policy),
            sampling_weights(policy),
            torch.random.fork_rng(),
            progress_bar("answering", len(drafts)) as bar,
        ):
            torch.manual_seed(seed)
            writer = Writer(policy, policy.generate, config, keep, stop)
            while left := [draft for draft in ordered if not draft.ended]:
                try:
                    writer.write(left, size, bar)
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    size = max(1, min(size, len(left)) // 2)
                    torch.cuda.empty_cache()
                    print(f"out of memory: continuing with batches of {size}")
        ends = set(config.eos_token_id)
        return [as_completion(tokenizer, draft.reply, ends, stop) for draft in drafts]

    return generate


def generation_config(policy: Any, tokenizer: Any, evaluation: Evaluation) -> Any:
    """How replies are sampled and end, as transformers' GenerationConfig."""
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "top_k": 0, **evaluation.sampling}
    return GenerationConfig(
        max_new_tokens=evaluation.max_new_tokens,
        eos_token_id=sorted(end_tokens(policy.generation_config, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        **(sampled if evaluation.sampling else {"do_sample": False}),
    )


@dataclass
class Writer:
    """Writes drafts with a model's generate(), in rounds: once enough of a batch has ended, the
    next drafts replace those rows; where what was read cannot be kept (prompts.py), unfinished
    replies are continued last."""

    policy: Any
    generate: Callable[..., Any]  # the model's
    config: Any  # a GenerationConfig with the length of a complete reply
    keep: bool  # rows that are read may be kept, in batches that change with every round
    stop: Stop | None = None
    sampler: Any = None  # a logits processor that samples, and notes the log-probabilities

    def write(self, drafts: Sequence[Draft], size: int, bar: Any = None) -> None:
        """Complete the drafts in this order, `size` at once; `bar` counts those that have ended."""
        reader = Reader(self.policy, [draft.prompt for draft in drafts], self.config.pad_token_id)
        waiting, running = list(drafts), list[Draft]()
        rows: Rows | None = None
        while waiting or running:
            new, waiting = waiting[: size - len(running)], waiting[size - len(running) :]
            batch = running + new
            if new:
                read = reader.read([draft.prompt + draft.reply for draft in new])
                rows = read if rows is None else rows.join(read)
            assert rows is not None  # there are new ones, or there were rows to keep
            rows = self._round(rows, batch)
            running = [draft for draft in batch if not draft.ended]
            if bar is not None:
                bar.update(len(batch) - len(running))
            if rows is None:
                waiting, running = waiting + running, []

    def _round(self, rows: Rows, drafts: Sequence[Draft]) -> Rows | None:
        """Continue all drafts until enough of them have ended; returns the rows of those that
        continue, None if all ended or if they have to be read again."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        width = rows.ids.shape[1]
        shortest, enough = KEPT_ROUND if self.keep and rows.cache else READ_AGAIN_ROUND

        def append(input_ids: Any, scores: Any, **_: Any) -> Any:
            """Which rows end: at an end token, their limit or answer; all, if enough have ended."""
            last = input_ids[:, -1]
            ends = torch.isin(last, torch.tensor(self.config.eos_token_id).to(last))
            for draft, token, end in zip(drafts, last.tolist(), ends.tolist(), strict=True):
                if not draft.ended:
                    draft.reply.append(token)
                    full = len(draft.reply) == self.config.max_new_tokens
                    answered = self.stop is not None and self.stop(draft.reply)
                    draft.ended = end or full or answered
            ended = [draft.ended for draft in drafts]
            if input_ids.shape[1] - width >= shortest and sum(ended) >= enough * len(ended):
                ended = [True] * len(ended)
            return torch.tensor(ended, device=last.device)

        config = copy.copy(self.config)
        config.max_new_tokens -= min(len(draft.reply) for draft in drafts)
        if self.sampler:
            self.sampler.drafts = drafts
        written = continue_rows(
            self.generate,
            rows,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([append]),
            logits_processor=LogitsProcessorList([self.sampler] if self.sampler else []),
        )
        left = [row for row, draft in enumerate(drafts) if not draft.ended]
        return written.keep(left) if self.keep and written and left else None


def batch_that_fits(policy: Any, evaluation: Evaluation) -> int:
    """How many replies to write at once: a power of two whose key-value cache and logits take at
    most half of the free GPU memory; 32 on a CPU, where larger batches bring little."""
    if policy.device.type != "cuda":
        return 32
    config = policy.config
    head = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    length = evaluation.max_new_tokens + 512  # room for a long prompt
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head * length
    logits = 2 * 4 * config.vocab_size
    free = free_bytes(policy.device)
    return int(2 ** min(8, max(0, int(free / 2 / (cache + logits)).bit_length() - 1)))


def at_answers(tokenizer: Any) -> Stop:
    """Stops a reply that ends with a complete `<answer>NUMBER</answer>`."""
    # Tokens that may close the element: decoding after every other would take long.
    closing = {token for text, token in tokenizer.get_vocab().items() if ">" in text}

    def stop(reply: list[int]) -> bool:
        return reply[-1] in closing and ends_with_answer(tokenizer.decode(reply[-LONGEST_ANSWER:]))

    return stop


def as_completion(
    tokenizer: Any, reply: list[int], ends: set[int], stop: Stop | None
) -> Completion:
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    ended = reply[-1] in ends or (stop is not None and stop(reply))
    return Completion(text=text, tokens=len(reply), truncated=not ended, ids=tuple(reply))
