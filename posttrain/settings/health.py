"""Settings of `health`: what a run watches while it trains, when it warns and when it stops.

A loss or a weight that is not a finite number always stops the run; the rest is set here.
"""

from typing import Literal

from pydantic import Field

from posttrain.settings.section import Section


class Health(Section):
    every: int | None = Field(10, ge=1)
    """Optimizer steps between two lines that say how the run is doing; null prints none."""
    max_skipped_steps: int | None = Field(16, ge=1)
    """Stop after so many optimizer steps in a row that fp16 skipped; null never stops. The loss
    scaler starts at 65,536 and halves at each: after 16 the gradients themselves overflow."""
    max_still_steps: int | None = Field(10, ge=1)
    """Stop after so many steps in a row that changed no weight, at a learning rate above 0 and with
    something to learn; null never stops."""
    patience: int = Field(10, ge=1)
    """Warn once a metric is beyond one of the limits below for so many steps in a row: single steps
    of a few prompts are noisy. After twice as many, the run stops if `stop_on` names the limit."""


class PairHealth(Health):
    max_chosen_drop: float | None = Field(100.0, gt=0)
    """Warn where the chosen replies are less likely than under the reference by more than so many
    nats a reply (rewards/chosen / -beta); null never warns. DPO can widen the gap to the rejected
    replies by making both unlikely (likelihood displacement, https://arxiv.org/abs/2410.08847)."""
    stop_on: list[Literal["chosen_drop"]] = Field([])
    """Limits that stop the run after twice `patience` steps beyond them; the others only warn."""


class ProblemHealth(Health):
    max_flat_groups: float | None = Field(1.0, gt=0, le=1)
    """Warn where at least this share of the groups got one reward for all completions; null never
    warns. Such a group has no advantages and teaches nothing."""
    max_truncated: float | None = Field(0.5, gt=0, le=1)
    """Warn where at least this share of the completions hit training.max_completion_length; null
    never warns."""
    min_reasoning: float | None = Field(0.3, gt=0, lt=1)
    """Warn where the text before the answer is shorter than this share of what it was in the first
    `patience` steps; null never warns. Policies drop their reasoning when the format alone pays."""
    max_kl: float | None = Field(1.0, gt=0)
    """Warn where the KL divergence from the reference is above so many nats a token, measured with
    training.beta above 0; null never warns."""
    max_unscored: float | None = Field(1.0, gt=0, le=1)
    """Warn where a reward cannot score this share of the completions; null never warns."""
    max_sampling_difference: float | None = Field(0.1, gt=0)
    """Warn where the log-probability that a token was sampled with and the one that is trained on
    differ by so many nats or more in the mean; null never warns. 16-bit arithmetic
    alone gives some thousandths."""
    stop_on: list[
        Literal["cold_start", "flat_groups", "truncated", "reasoning", "kl", "unscored", "sampling"]
    ] = Field(["cold_start", "unscored"])
    """Limits that stop the run after twice `patience` steps beyond them; the others only warn.
    cold_start, after `patience` steps: every completion had the lowest reward."""
