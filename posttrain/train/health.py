"""The rules that judge the health of a run: they read metrics and return events. No torch here.

A fault stops the run at once: a loss or weight that is not a finite number, fp16 that skips every
step, weights that do not change. A metric out of range may come back, so it first gives a warning.
"""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.gsm8k import ScoredReply
from posttrain.base.paths import run_command
from posttrain.run.results import HealthEvent
from posttrain.settings.health import Health, PairHealth, ProblemHealth

Row = Mapping[str, Any]
"""The metrics of a step as the trainer logs them, or their mean since it last logged."""
Measure = Callable[[float, int, Row], float | None]
"""(a metric of the row, number of steps in the row, row) -> the value to judge, None if unknown."""

WAYS_OUT = (
    "GRPO learns only from completions that earn more than others of their group. Give worked "
    "examples in the prompt (prompt.examples), or first train on the model's own right answers "
    "(./run sft; docs/stages.md)"
)
MESSAGES = {
    "chosen_drop": "the chosen replies have been less likely than under the reference, by "
    "{value:.0f} nats a reply (health.max_chosen_drop = {limit:g}): the policy makes both replies "
    "less likely. Lower training.learning_rate, raise training.beta, or add sft to "
    "training.loss_type",
    "flat_groups": "{value:.0%} of the groups have had one reward for all completions "
    "(health.max_flat_groups = {limit:.0%}): they teach nothing. The problems are too easy or too "
    "hard, the reward does not separate completions, or num_generations is too small",
    "truncated": "{value:.0%} of the completions have hit the length limit (health.max_truncated = "
    "{limit:.0%}): raise training.max_completion_length",
    "reasoning": "the text before the answer has been {value:.0%} of its first length "
    "(health.min_reasoning = {limit:.0%}): the policy stops reasoning. See samples.jsonl; the "
    "format may pay too much beside the right answer",
    "kl": "the KL divergence from the reference has been {value:.2f} nats a token (health.max_kl = "
    "{limit:g}): lower training.learning_rate or raise training.beta",
    "sampling": "the log-probabilities that tokens were sampled with have been {value:.2g} nats "
    "from those trained on (health.max_sampling_difference = {limit:g}): rollouts come from "
    "another model than the one that learns. Set model.rollout_weights: adapter, and "
    "model.fast_inference: never",
    "unscored": "the reward '{reward}' could not score {value:.0%} of the completions "
    "(health.max_unscored = {limit:.0%}): it returns None or NaN for them. See samples.jsonl",
    "cold_start": "every completion has had the lowest reward, so the policy cannot learn. "
    + WAYS_OUT
    + ". If it earned rewards before, it has collapsed: lower training.learning_rate or raise "
    "training.beta",
}
"""What each rule warns of, to follow "for 3 steps"."""


@dataclass
class Rule:
    """A limit for a metric. A metric that stays beyond its limit gives a warning."""

    kind: str
    metric: str
    limit: float | None  # which values at or above break, of "reasoning" those below; None is off
    measure: Measure = lambda value, *_: value
    reward: str = ""
    broken_steps: int = 0  # for how many steps in a row it has been broken


def rules_for(health: Health, beta: float, rewards: Iterable[str] = ()) -> list[Rule]:
    """The rules that these settings switch on, on the metrics that trl and the rewards log."""
    if isinstance(health, PairHealth):
        limit = health.max_chosen_drop
        return [Rule("chosen_drop", "rewards/chosen", limit, lambda drop, *_: drop * (-1 / beta))]
    if not isinstance(health, ProblemHealth):
        return []
    reasoning = _share_of_the_first(health.patience)
    return [
        Rule("cold_start", "frac_reward_zero_std", 1.0, _cold_start()),
        Rule("flat_groups", "frac_reward_zero_std", health.max_flat_groups),
        Rule("truncated", "completions/clipped_ratio", health.max_truncated),
        Rule("reasoning", "completions/reasoning", health.min_reasoning, reasoning),
        Rule("kl", "kl", health.max_kl),
        Rule("sampling", "sampling/sampling_logp_difference/mean", health.max_sampling_difference),
        *(
            Rule("unscored", f"rewards/{name}/unscored", health.max_unscored, reward=name)
            for name in rewards
        ),
    ]


def _cold_start() -> Measure:
    """1 where all groups are flat at the lowest reward, so that there is nothing to learn: 0, or
    below it the lowest mean that the run has seen. Flat above 0 may as well be the highest."""
    lowest = 0.0

    def measure(flat: float, _: int, row: Row) -> float | None:
        nonlocal lowest
        reward = row.get("reward")
        if reward is None:
            return None
        lowest = min(lowest, float(reward))
        return float(flat >= 1 and float(reward) <= lowest)

    return measure


def _share_of_the_first(steps: int) -> Measure:
    """The metric divided by its mean over the first `steps` steps; None until these are over."""
    total, seen = 0.0, 0

    def measure(value: float, new_steps: int, _: Row) -> float | None:
        nonlocal total, seen
        if seen < steps:
            total, seen = total + new_steps * value, seen + new_steps
            return None
        return value * seen / total if total > 0 else None

    return measure


class RuleWatcher:
    """Counts for how many steps in a row each rule is broken.

    After `patience` steps there is a warning, and after twice as many (of a cold start, after as
    many) the run stops if `stop_on` names the rule. A rule that is broken again later warns again.
    """

    def __init__(self, rules: Sequence[Rule], patience: int, stop_on: Sequence[str]) -> None:
        self._rules = rules
        self._patience = patience
        self._stop_on = stop_on
        self._last_step = 0

    def observe(self, step: int, row: Row) -> list[HealthEvent]:
        """The events that a row of metrics gives. Call it with the rows in order of their steps."""
        new_steps, self._last_step = step - self._last_step, step
        events = []
        for rule in self._rules:
            logged = row.get(rule.metric)
            value = None if logged is None else rule.measure(float(logged), new_steps, row)
            if value is None or rule.limit is None:
                continue
            broken = value < rule.limit if rule.kind == "reasoning" else value >= rule.limit
            before = rule.broken_steps
            rule.broken_steps = after = before + new_steps if broken else 0
            if action := self._action(rule, before, after):
                text = MESSAGES[rule.kind].format(value=value, limit=rule.limit, reward=rule.reward)
                text = f"for {after} step{'s' if after > 1 else ''} {text}"
                events.append(HealthEvent(step, rule.kind, text, value, rule.limit, action))
        return events

    def resume_after(self, step: int) -> None:
        """Count the next row from `step` on, even if the rows before it ended at another step."""
        self._last_step = step

    def _action(self, rule: Rule, before: int, after: int) -> Literal["warned", "stopped"] | None:
        most = self._patience * (1 if rule.kind == "cold_start" else 2)
        if rule.kind in self._stop_on and before < most <= after:
            return "stopped"
        return "warned" if before < self._patience <= after else None


class UpdateCheck:
    """Checks what each optimizer step did to the weights."""

    def __init__(self, max_skipped_steps: int | None, max_still_steps: int | None) -> None:
        self._max_skipped = max_skipped_steps
        self._max_still = max_still_steps
        self._skipped = 0
        self._unchanged = 0
        self._norms: list[float] | None = None

    def observe(
        self, step: int, norms: list[float], learning_rate: float, skipped: bool, learnable: bool
    ) -> HealthEvent | None:
        """The event that stops the run after this step, or None. `norms` are those of the trained
        tensors; the loss scaler `skipped` the step; it is `learnable` if it had a gradient."""

        def stop(kind: str, value: int, limit: int, message: str) -> HealthEvent:
            return HealthEvent(step, kind, message, float(value), float(limit), "stopped")

        moved, self._norms = norms != self._norms, norms
        self._skipped = self._skipped + 1 if skipped else 0
        if not skipped and learning_rate > 0 and learnable:
            self._unchanged = 0 if moved else self._unchanged + 1
        if bad := sum(not math.isfinite(norm) for norm in norms):
            message = (
                f"{bad} of {len(norms)} trained tensors hold NaN or infinity: the gradient of this "
                "step was not a finite number. Lower training.learning_rate, or train in bf16 or "
                "float32"
            )
            return stop("weights_not_finite", bad, 0, message)
        if self._max_skipped and self._skipped >= self._max_skipped:
            message = (
                f"fp16 skipped {self._skipped} optimizer steps in a row (health.max_skipped_steps)"
                ": the gradients overflow float16 at any scale. Use bf16 if the GPU has it, else "
                "lower training.learning_rate and training.max_grad_norm, or model.dtype float32"
            )
            return stop("skipped_steps", self._skipped, self._max_skipped, message)
        if self._max_still and self._unchanged >= self._max_still:
            message = (
                f"{self._unchanged} optimizer steps at learning rate {learning_rate:g} changed no "
                "weight (health.max_still_steps): it is too small for the weights' precision, or "
                "nothing that is trained reaches the loss (see lora.target_modules)"
            )
            return stop("still_weights", self._unchanged, self._max_still, message)
        return None


def cold_start_note(replies: Sequence[Any], model: str, config: str) -> str | None:
    """The message if no reply before training earned a reward; else None. `model` and `config` are
    as the user named them, for the commands."""
    earned = [reply.as_row()["total_reward"] or 0.0 for reply in replies]
    if not replies or earned[0] > 0 or any(total != earned[0] for total in earned):
        return None  # where rewards differ, one reply earns more than another
    count = len(replies)
    right = ""
    if isinstance(replies[0], ScoredReply):
        lenient = sum(reply.lenient for reply in replies)
        right = f" The last number is right in {lenient / count:.0%} of them."
    run, config = run_command(), shlex.quote(config)
    return (
        f"\nwarning: a cold start: 0 of {count} replies earn a reward.{right} {WAYS_OUT}:\n"
        f"  {run} grpo --config {config} prompt.examples=examples.jsonl\n"
        f"  {run} evaluate --model {shlex.quote(model)} --config {config} --data train "
        "--examples examples.jsonl --samples 8"
    )
