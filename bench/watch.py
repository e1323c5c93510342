"""What is read off a trainer while it trains: times, generations, batches."""

import functools
import random
import time
from dataclasses import dataclass, field
from typing import Any

from bench.lengths import recorded_lengths


class Clock:
    """When each optimizer step ended, in seconds of the clock and of this process."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda.is_available()
        self.steps: list[tuple[float, float]] = []
        self.ended: float | None = None

    def now(self) -> tuple[float, float]:
        import torch

        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Clocking(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.steps = [clock.now()]

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append(clock.now())

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock.ended = clock.now()[0]

        return Clocking()


@dataclass
class Rollouts:
    """What was generated, a list entry a call: the step it was for, seconds and token counts."""

    step: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lengths: list[list[tuple[int, int]]] = field(default_factory=list)
    """(prompt tokens, completion tokens) of each row."""


def watch_rollouts(trainer: Any, clock: Clock) -> Rollouts:
    """Time every generation of the trainer and count its tokens."""
    result, generate = Rollouts(), trainer._generate_single_turn

    @functools.wraps(generate)
    def timed(prompt_ids: Any, *arguments: Any, **named: Any) -> Any:
        started, _ = clock.now()
        out = generate(prompt_ids, *arguments, **named)
        result.step.append(trainer.state.global_step)
        result.seconds.append(clock.now()[0] - started)
        result.lengths.append([(len(p), len(c)) for p, c in zip(prompt_ids, out[0], strict=True)])
        return out

    trainer._generate_single_turn = timed
    return result


def fix_rollouts(trainer: Any, limit: int) -> None:
    """Random completions and rewards instead of sampled ones, the same on every side."""
    stream, rng = recorded_lengths(limit), random.Random(0)
    vocabulary = min(trainer.model.config.vocab_size, 100_000)
    (end, *_) = trainer.eos_token_ids

    def completions(prompt_ids: Any, *_: Any, **__: Any) -> Any:
        rows = [
            [rng.randrange(300, vocabulary) for _ in range(min(next(stream), limit) - 1)] + [end]
            for _ in prompt_ids
        ]
        return rows, None

    def reward(completions: Any, **_: Any) -> list[float]:
        return [float(7919 * row % 5) for row in range(len(completions))]

    trainer._generate_single_turn = completions
    trainer.reward_funcs = [reward for _ in trainer.reward_funcs]


def watch_batches(trainer: Any) -> list[tuple[int, Any, Any]]:
    """(step, attention mask, reply mask) of every micro-batch that a DPO trainer computes on."""
    result: list[tuple[int, Any, Any]] = []
    compute = trainer.compute_loss

    @functools.wraps(compute)
    def counted(model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        masks = inputs["attention_mask"], inputs["completion_mask"]
        result.append((trainer.state.global_step, *masks))
        return compute(model, inputs, *arguments, **named)

    trainer.compute_loss = counted
    return result
