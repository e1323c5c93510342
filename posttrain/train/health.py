"""The rules that a run's health is judged by: streams of figures in, events out. No torch here.

A fault stops the run: a loss or weight that is no finite number, fp16 that skips every step,
weights that do not move. A sign is first a warning: it may pass.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.settings import PairHealth, ProblemHealth

Row = Mapping[str, Any]
"""What the trainer logs of a step, or the mean over the steps since the last one it logged."""


@dataclass(frozen=True)
class Event:
    """A line of health.jsonl."""

    step: int
    kind: str
    message: str
    value: float | None
    threshold: float | None
    action: Literal["warned", "stopped", "halved"]


@dataclass(frozen=True)
class Sign:
    """Something in the metrics that warns when it lasts."""

    kind: str
    measure: Callable[[int, Row], float | None]
    """(steps that the row covers, row) -> the figure; None where the row has none."""
    threshold: float
    below: bool
    """Whether the sign is a figure below the threshold, and not one from it up."""
    message: str
    """Text with {value}, {threshold} and {steps}."""

    def shows(self, value: float) -> bool:
        return value < self.threshold if self.below else value >= self.threshold


def signs_of(health: PairHealth | ProblemHealth, beta: float) -> list[Sign]:
    """The signs that these settings watch for, in the metrics that trl logs."""
    if isinstance(health, PairHealth):
        return _pair_signs(health, beta)
    return _problem_signs(health)


def _pair_signs(health: PairHealth, beta: float) -> list[Sign]:
    if health.max_chosen_drop is None:
        return []

    def drop(_: int, row: Row) -> float | None:
        reward = row.get("rewards/chosen")
        return None if reward is None else -float(reward) / beta

    message = (
        "for {steps} steps the chosen replies have been less likely than under the reference, by "
        "{value:.0f} nats a reply (health.max_chosen_drop = {threshold:g}): the policy unlearns "
        "both replies. Lower training.learning_rate, raise training.beta, or add sft to "
        "training.loss_type"
    )
    return [Sign("chosen_drop", drop, health.max_chosen_drop, False, message)]


def _problem_signs(health: ProblemHealth) -> list[Sign]:
    signs = []
    if health.max_flat_groups is not None:
        message = (
            "for {steps} steps {value:.0%} of the groups have had one reward for all completions "
            "(health.max_flat_groups = {threshold:.0%}): they teach nothing. The problems are too "
            "easy or too hard, the reward does not tell completions apart, or num_generations is "
            "too small"
        )
        measure = _logged("frac_reward_zero_std")
        signs.append(Sign("flat_groups", measure, health.max_flat_groups, False, message))
    if health.max_truncated is not None:
        message = (
            "for {steps} steps {value:.0%} of the completions have hit the length limit "
            "(health.max_truncated = {threshold:.0%}): raise training.max_completion_length"
        )
        measure = _logged("completions/clipped_ratio")
        signs.append(Sign("truncated", measure, health.max_truncated, False, message))
    if health.min_reasoning is not None:
        message = (
            "for {steps} steps the text before the answer has been {value:.0%} of its first length "
            "(health.min_reasoning = {threshold:.0%}): the policy stops reasoning. See "
            "samples.jsonl; the format may pay too much beside the right answer"
        )
        measure = _share_of_the_first("completions/reasoning", health.patience)
        signs.append(Sign("reasoning", measure, health.min_reasoning, True, message))
    if health.max_kl is not None:
        message = (
            "for {steps} steps the KL divergence from the reference has been {value:.2f} nats a "
            "token (health.max_kl = {threshold:g}): lower training.learning_rate or raise "
            "training.beta"
        )
        signs.append(Sign("kl", _logged("kl"), health.max_kl, False, message))
    return signs


def _logged(name: str) -> Callable[[int, Row], float | None]:
    def measure(_: int, row: Row) -> float | None:
        value = row.get(name)
        return None if value is None else float(value)

    return measure


def _share_of_the_first(name: str, steps: int) -> Callable[[int, Row], float | None]:
    """The figure over its mean in the first `steps` steps, once these are past."""
    total, seen = 0.0, 0

    def measure(covered: int, row: Row) -> float | None:
        nonlocal total, seen
        value = row.get(name)
        if value is None:
            return None
        if seen < steps:
            total, seen = total + covered * float(value), seen + covered
            return None
        return float(value) * seen / total if total > 0 else None

    return measure


class Signs:
    """Which signs have lasted long enough: after `patience` steps a warning, after twice as many
    a stop for the kinds in `stop_on`. A sign that passes and comes back warns again."""

    def __init__(self, signs: Sequence[Sign], patience: int, stop_on: Sequence[str]) -> None:
        self._signs = signs
        self._patience = patience
        self._stop_on = stop_on
        self._lasted = {sign.kind: 0 for sign in signs}
        self._last_step = 0

    def observe(self, step: int, row: Row) -> list[Event]:
        """The events of one row of metrics; rows come in the order of their steps."""
        covered, self._last_step = step - self._last_step, step
        events = []
        for sign in self._signs:
            value = sign.measure(covered, row)
            if value is None:
                continue
            was = self._lasted[sign.kind]
            now = self._lasted[sign.kind] = was + covered if sign.shows(value) else 0
            action = self._action(sign.kind, was, now)
            if action is not None:
                message = sign.message.format(value=value, threshold=sign.threshold, steps=now)
                events.append(Event(step, sign.kind, message, value, sign.threshold, action))
        return events

    def go_on_after(self, step: int) -> None:
        """The next row covers the steps after `step`, whatever was observed of those before."""
        self._last_step = step

    def _action(self, kind: str, was: int, now: int) -> Literal["warned", "stopped"] | None:
        if kind in self._stop_on and was < 2 * self._patience <= now:
            return "stopped"
        return "warned" if was < self._patience <= now else None


class Updates:
    """What each optimizer step did to the weights."""

    def __init__(self, max_skipped_steps: int | None, max_still_steps: int | None) -> None:
        self._max_skipped = max_skipped_steps
        self._max_still = max_still_steps
        self._skipped = 0
        self._still = 0
        self._norms: list[float] | None = None

    def observe(
        self, step: int, norms: list[float], learning_rate: float, skipped: bool, learnable: bool
    ) -> Event | None:
        """`norms` holds the norm of every trainable tensor after the step; `skipped` says that the
        loss scaler left the step out, `learnable` that its rows had something to learn."""
        bad = sum(not math.isfinite(norm) for norm in norms)
        if bad:
            message = (
                f"{bad} of {len(norms)} trained tensors hold NaN or infinity: the gradient of this "
                "step was no finite number. Lower training.learning_rate, or train in bf16 or "
                "float32"
            )
            return Event(step, "weights_not_finite", message, float(bad), 0.0, "stopped")
        moved, self._norms = norms != self._norms, norms
        self._skipped = self._skipped + 1 if skipped else 0
        if self._max_skipped and self._skipped >= self._max_skipped:
            message = (
                f"fp16 skipped {self._skipped} optimizer steps in a row (health.max_skipped_steps)"
                ": the gradients overflow float16 at any scale. Use bf16 where the GPU has it, "
                "else lower training.learning_rate and training.max_grad_norm, or model.dtype "
                "float32"
            )
            return self._stop(step, "skipped_steps", message, self._skipped, self._max_skipped)
        if not skipped and learning_rate > 0 and learnable:
            self._still = 0 if moved else self._still + 1
        if self._max_still and self._still >= self._max_still:
            message = (
                f"{self._still} optimizer steps at learning rate {learning_rate:g} changed no "
                "weight (health.max_still_steps): it is too small for the weights' precision, or "
                "nothing that is trained reaches the loss (see lora.target_modules)"
            )
            return self._stop(step, "still_weights", message, self._still, self._max_still)
        return None

    @staticmethod
    def _stop(step: int, kind: str, message: str, value: int, limit: int) -> Event:
        return Event(step, kind, message, float(value), float(limit), "stopped")
