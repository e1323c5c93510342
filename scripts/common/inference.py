"""Run the policy without training it: render prompts, generate replies, score given replies."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from eval import Completion, Conversation, Generate, Message
from eval.preference import Pair
from rewards.answer import ends_with_answer
from scripts.common.policy import inference_mode
from scripts.common.progress import progress_bar
from scripts.common.settings import Evaluation

LONGEST_ANSWER = 96  # tokens that surely hold an answer element of 64 characters and its tags


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

    Prompts are batched by length and padded on the left. A batch that does not fit the memory is
    halved and tried again. Greedy at temperature 0; above it the sampling is seeded and leaves the
    training's random state alone.
    """
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    sampling: dict[str, Any] = {"do_sample": False}
    if evaluation.temperature > 0:
        sampling = {"do_sample": True, "temperature": evaluation.temperature, "top_k": 0}
    ends = end_tokens(policy, tokenizer)
    config = GenerationConfig(
        max_new_tokens=evaluation.max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    stop = StoppingCriteriaList()
    if evaluation.stop_at_answer:
        stop.append(StopAtAnswer(tokenizer))
    size = evaluation.batch_size or batch_that_fits(policy, evaluation)

    def answer(texts: list[str]) -> list[Completion]:
        inputs = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(policy.device)
        output = policy.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=config,
            stopping_criteria=stop,
        )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [_completion(tokenizer, ids, ends) for ids in new]

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        nonlocal size
        texts = [render(tokenizer, conversation) for conversation in conversations]
        lengths = token_lengths(tokenizer, texts)
        left = sorted(range(len(texts)), key=lambda i: lengths[i], reverse=True)
        replies: dict[int, Completion] = {}
        with (
            inference_mode(policy),
            torch.random.fork_rng(),
            progress_bar("answering", len(texts)) as bar,
        ):
            torch.manual_seed(seed)
            while left:
                batch = left[:size]
                try:
                    replies.update(zip(batch, answer([texts[i] for i in batch]), strict=True))
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    size = max(1, min(size, len(batch)) // 2)
                    torch.cuda.empty_cache()
                    print(f"out of memory: going on with batches of {size}")
                    continue
                left = left[size:]
                bar.update(len(batch))
        return [replies[i] for i in range(len(texts))]

    return generate


def end_tokens(policy: Any, tokenizer: Any) -> set[int]:
    """Ids that end a reply: the tokenizer's EOS and what else the model declares as one."""
    declared = policy.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return {int(i) for i in [tokenizer.eos_token_id, *several] if i is not None}


def batch_that_fits(policy: Any, evaluation: Evaluation) -> int:
    """How many replies to write at once: a power of two whose key-value cache and logits take at
    most half of the free GPU memory; 32 on a CPU, where larger batches bring little."""
    import torch

    if policy.device.type != "cuda":
        return 32
    config = policy.config
    head = config.hidden_size // config.num_attention_heads
    length = evaluation.max_new_tokens + 512  # room for a long prompt
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head * length
    logits = 2 * 4 * config.vocab_size
    free, _ = torch.cuda.mem_get_info()
    return int(2 ** min(8, max(0, int(free / 2 / (cache + logits)).bit_length() - 1)))


class StopAtAnswer:
    """Ends a reply once its last line is a whole `<answer>NUMBER</answer>`."""

    def __init__(self, tokenizer: Any) -> None:
        import torch

        self._tokenizer = tokenizer
        closing = [i for t, i in tokenizer.get_vocab().items() if t.endswith(">")]
        self._closing = torch.tensor(closing)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        last = input_ids[:, -1]
        done = torch.isin(last, self._closing.to(last.device))
        for row in done.nonzero()[:, 0].tolist():
            tail = self._tokenizer.decode(input_ids[row, -LONGEST_ANSWER:])
            done[row] = ends_with_answer(tail) and not tail.endswith(tuple(" \n"))
        return done


def _completion(tokenizer: Any, ids: list[int], ends: set[int]) -> Completion:
    """Token ids as generated, padding and all -> a Completion."""
    stops = ends | {tokenizer.pad_token_id}
    length = next((n for n, i in enumerate(ids) if i in stops), None)
    kept = ids if length is None else ids[: length + (ids[length] in ends)]
    text: str = tokenizer.decode(kept, skip_special_tokens=True)
    return Completion(text=text, tokens=len(kept), truncated=length is None)


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
