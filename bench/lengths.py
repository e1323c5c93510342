"""Completions of a recorded length, whichever library generates.

Random weights hardly ever write an end token by themselves, so both sides of the benchmark are made
to: a logits processor forbids every end token until a row has its length and allows nothing else
there. It is appended where transformers assembles its processors, the one place that all of stock
trl, Unsloth's patched generate and our own scripts pass through, so no side is treated differently.
A row whose length exceeds the run's limit is cut there, as a real one would be.
"""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAST = 16  # tokens by which a row is known again
RECORDED = Path(__file__).with_name("completion_lengths.json")


def recorded_lengths(limit: int, seed: int = 0) -> Iterator[int]:
    """An endless stream of lengths, the same for every side; at most limit + 1 (never ends itself).

    A limit other than the recorded one scales the distribution with it.
    """
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    scale, rng = limit / recorded["limit"], random.Random(seed)
    while True:
        drawn = math.exp(rng.gauss(math.log(recorded["median"]), recorded["log_sigma"]))
        yield max(2, min(limit + 1, round(scale * drawn)))


class ForcedLengths:
    """A logits processor: each row of the batch ends at a length drawn from the stream.

    Rows are chosen on the host and written in place, a column or a row at a time, so that it costs
    next to nothing beside the sampling and never waits for the device. Rows that an earlier
    generation left off are known again by their last tokens, and keep what is left of their length.
    """

    def __init__(
        self, prompt: int, stream: Iterator[int], ends: list[int], earlier: "ForcedLengths | None"
    ) -> None:
        self._prompt, self._stream, self._ends = prompt, stream, ends
        self._earlier = earlier
        self.lengths: list[int] = []
        """New tokens of each row, end token included; drawn at the first token."""
        self._ids: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """input_ids (rows, tokens so far), scores (rows, vocabulary), which is changed."""
        if not self.lengths:
            left = self._earlier.left_off() if self._earlier else {}
            self._earlier = None
            for tokens in map(tuple, input_ids[:, -LAST - 1 : -1].tolist()):
                known = left.get(tokens)
                self.lengths.append(known.pop() if known else next(self._stream))
        self._ids = input_ids
        new = input_ids.shape[1] - self._prompt + 1  # the token that these scores are for
        for end in self._ends:
            scores[:, end] = -math.inf
        for row, length in enumerate(self.lengths):
            if length == new:
                scores[row] = -math.inf
                scores[row, self._ends[0]] = 0.0
        return scores

    def left_off(self) -> dict[tuple[int, ...], list[int]]:
        """What is left of the lengths of rows that have not ended, by their last tokens but one:
        the last token is sampled after the last call. Rows that are alike may change places."""
        new = self._ids.shape[1] - self._prompt + 1
        result: dict[tuple[int, ...], list[int]] = {}
        for tokens, length in zip(self._ids[:, -LAST:].tolist(), self.lengths, strict=True):
            if length > new:
                result.setdefault(tuple(tokens), []).append(length - new)
        return result


def force_lengths(stream: Iterator[int], ends: list[int]) -> None:
    """Make every generate() of this process draw its rows' lengths from the stream.

    `ends` are the ids of the end tokens, the one to write first. Continuous batching and vLLM do
    not pass through here: their completions keep the length that the model gives them.
    """
    from transformers.generation.utils import GenerationMixin

    assemble, earlier = GenerationMixin._get_logits_processor, None

    def with_lengths(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal earlier
        result = assemble(self, *args, **named)
        if "input_ids_seq_length" in named:  # generate(); continuous batching names none
            earlier = ForcedLengths(named["input_ids_seq_length"], stream, ends, earlier)
            result.append(earlier)
        return result

    GenerationMixin._get_logits_processor = with_lengths
