"""Read prompts once, and keep what was read while replies are written.

What rows of a batch have in common is read once: the turn that all prompts begin with, and a prompt
that several rows continue. Reading fills a cache of keys and values. Those of a token do not depend
on where in the batch it stands, as long as its position is counted without the padding: so rows can
leave a batch, and others join it, without anything being read again.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

Cache = list[tuple[Any, Any]]
SHORTEST_START = 8  # tokens: a shorter beginning is read again, which costs less than a pass


@dataclass(frozen=True)
class Rows:
    """Rows of W columns, with padding on the left of a row or within it. Either all columns but the
    last are read, or none is and the cache is empty."""

    ids: Any  # (B, W)
    mask: Any  # 1 where there is a token, 0 where there is padding, (B, W)
    cache: Cache  # keys and values of each layer, both (B, heads, W - 1, size)

    def keep(self, rows: Sequence[int]) -> "Rows":
        """Only these rows, without the columns in which they all have padding."""
        import torch

        chosen = torch.tensor(rows, device=self.ids.device)
        columns = self.mask[chosen].any(0)
        return Rows(
            self.ids[chosen][:, columns],
            self.mask[chosen][:, columns],
            [(k[chosen][:, :, columns[:-1]], v[chosen][:, :, columns[:-1]]) for k, v in self.cache],
        )

    def join(self, other: "Rows") -> "Rows":
        """These rows and then the other ones, padded on the left to the same width."""
        import torch

        width = max(self.ids.shape[1], other.ids.shape[1])
        a, b = self._pad(width), other._pad(width)
        return Rows(
            torch.cat([a.ids, b.ids]),
            torch.cat([a.mask, b.mask]),
            [
                (torch.cat([k, other_k]), torch.cat([v, other_v]))
                for (k, v), (other_k, other_v) in zip(a.cache, b.cache, strict=True)
            ],
        )

    def _pad(self, width: int) -> "Rows":
        from torch.nn.functional import pad

        more = width - self.ids.shape[1]
        cache = [(pad(k, (0, 0, more, 0)), pad(v, (0, 0, more, 0))) for k, v in self.cache]
        return Rows(pad(self.ids, (more, 0)), pad(self.mask, (more, 0)), cache)


class Reader:
    """Reads prompts of at least two tokens up to their last token; nothing yet where it could not
    be kept: on a GPU, where Unsloth decodes with its cache, and where a layer sees only the last
    columns, of which padding would take some."""

    def __init__(self, policy: Any, prompts: Sequence[Sequence[int]], padding: int) -> None:
        """`prompts` are all that will be read, `padding` is the id to pad with."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        self._policy, self._padding = policy, padding
        self._keeps = policy.device.type == "cpu" and all(
            type(layer) is DynamicLayer for layer in DynamicCache(config=policy.config).layers
        )
        different = set(map(tuple, prompts))
        start = common_start(different) if len(different) > 1 else 0
        self._start = start if self._keeps and start >= SHORTEST_START else 0
        self._first: Cache = []

    def read(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Rows for the prompts, which may be followed by a part of their reply."""
        if not self._keeps:
            return _in_columns(prompts, 0, self._padding, self._policy.device)
        different = list(dict.fromkeys(map(tuple, prompts)))
        rows = _in_columns(different, self._start, self._padding, self._policy.device)
        cache: Cache = []
        if self._start:
            if not self._first:
                ids, mask = (part[:1, : self._start] for part in (rows.ids, rows.mask))
                self._first = _forward(self._policy, ids, mask, [])
            many = (len(different), -1, -1, -1)
            cache = [(k.expand(many), v.expand(many)) for k, v in self._first]
        if self._start < rows.ids.shape[1] - 1:
            own = rows.ids[:, self._start : -1]
            cache = _forward(self._policy, own, rows.mask[:, :-1], cache)
        row_of = {prompt: row for row, prompt in enumerate(different)}
        chosen = [row_of[tuple(prompt)] for prompt in prompts]
        return Rows(rows.ids, rows.mask, cache).keep(chosen)


def continue_rows(generate: Callable[..., Any], rows: Rows, **arguments: Any) -> Rows | None:
    """The rows with the tokens that a model's generate() adds; None if nothing is kept."""
    import torch
    from transformers import DynamicCache

    arguments |= {"input_ids": rows.ids, "attention_mask": rows.mask}
    if not rows.cache:
        generate(**arguments)
        return None
    cache = DynamicCache(rows.cache)
    ids = generate(past_key_values=cache, **arguments)
    new = torch.ones_like(ids[:, rows.ids.shape[1] :])
    return Rows(ids, torch.cat([rows.mask, new], 1), _kept(cache))


def common_start(prompts: Collection[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with, leaving each at least one more."""
    # What the first and the last in alphabetical order share, all between them share too.
    return min(shared(min(prompts), max(prompts)), *(len(prompt) - 1 for prompt in prompts))


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _in_columns(prompts: Sequence[Sequence[int]], start: int, padding: int, device: Any) -> Rows:
    """Prompts side by side: their first `start` tokens, padding, and the rest of each."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        mask[row, :start] = 1
        mask[row, width - len(prompt) + start :] = 1
    ids[mask.bool()] = torch.tensor([token for prompt in prompts for token in prompt])
    return Rows(ids.to(device), mask.to(device), [])


def _forward(policy: Any, ids: Any, mask: Any, cache: Cache) -> Cache:
    """The keys and values of each layer after reading ids (B, n); mask (B, read before + n)."""
    from transformers import DynamicCache

    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    output = policy(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=DynamicCache(cache),
        use_cache=True,
        logits_to_keep=1,
    )
    return _kept(output.past_key_values)


def _kept(cache: Any) -> Cache:
    return [(layer.keys, layer.values) for layer in cache.layers]
