"""The rules of health on streams of metrics."""

import math
from typing import Any

import pytest

from eval import Completion
from eval.gsm8k import Problem, score_reply
from posttrain.run.results import HealthEvent
from posttrain.settings.health import PairHealth, ProblemHealth
from posttrain.train.health import WAYS_OUT, RuleWatcher, UpdateCheck, cold_start_note, rules_for

HEALTHY = {"frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.1, "kl": 0.05}
HEALTHY["completions/reasoning"] = 200.0


def judge(stream: list[Any], health: Any = None, every: int = 1) -> list[tuple[int, str, str]]:
    health = health or ProblemHealth(patience=3)
    watcher = RuleWatcher(rules_for(health, 0.1), health.patience, health.stop_on)
    return [
        (event.step, event.kind, event.action)
        for number, row in enumerate(stream, 1)
        for event in watcher.observe(number * every, row)
    ]


def test_healthy_stream_says_nothing() -> None:
    assert judge([HEALTHY] * 100) == []
    assert judge([{"rewards/chosen": 0.5}, {"rewards/chosen": -9.9}] * 50, PairHealth()) == []
    # rewards/chosen is beta times the log-ratio: -10 at beta 0.1 is 100 nats.
    dropped = [{"rewards/chosen": -10.0}] * 12
    assert judge(dropped, PairHealth()) == [(10, "chosen_drop", "warned")]
    assert judge(dropped, PairHealth(max_chosen_drop=None)) == []
    # No KL at beta 0; None where trl found no valid figure.
    assert judge([{"reward": 0.0, "kl": None, "frac_reward_zero_std": None}] * 30) == []


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("flat_groups", {"frac_reward_zero_std": 1.0}),
        ("truncated", {"completions/clipped_ratio": 0.5}),
        ("reasoning", {"completions/reasoning": 59.0}),
        ("kl", {"kl": 1.0}),
    ],
)
def test_rule_has_to_be_broken_for_long(kind: str, bad: dict[str, float]) -> None:
    """Three steps in a row warn once; stop_on stops at six; it warns again after a recovery."""
    sick = {**HEALTHY, **bad}
    start = [HEALTHY] * 3
    assert judge([*start, sick, sick, HEALTHY] * 4) == []
    assert judge([*start, *[sick] * 20]) == [(6, kind, "warned")]
    stopping = ProblemHealth.model_validate({"patience": 3, "stop_on": [kind]})
    assert judge([*start, *[sick] * 6], stopping) == [(6, kind, "warned"), (9, kind, "stopped")]
    again = [*start, *[sick] * 3, HEALTHY, *[sick] * 3]
    assert judge(again) == [(6, kind, "warned"), (10, kind, "warned")]
    # A row that covers two steps counts as two.
    assert judge([*start, *[sick] * 4], every=2) == [(10, kind, "warned")]


FLAT = {**HEALTHY, "frac_reward_zero_std": 1.0}


@pytest.mark.parametrize(
    ("rewards", "events"),
    [
        ([0.0] * 9, [(3, "cold_start", "stopped"), (3, "flat_groups", "warned")]),
        ([0.0, 0.0, 0.5] * 3, [(3, "flat_groups", "warned")]),
        ([3.0] * 9, [(3, "flat_groups", "warned")]),  # nothing is left to learn
        # Of a custom reward that falls to its minimum.
        ([-0.5, *[-1.0] * 4], [(3, "cold_start", "stopped"), (3, "flat_groups", "warned")]),
        ([-1.0, *[-0.5] * 4], [(3, "flat_groups", "warned")]),
    ],
)
def test_a_cold_start_stops_and_nothing_left_to_learn_only_warns(
    rewards: list[float], events: list[tuple[int, str, str]]
) -> None:
    stream = [{**FLAT, "reward": reward} for reward in rewards]
    assert judge(stream) == events
    assert judge([{**row, "frac_reward_zero_std": 0.9} for row in stream]) == []
    only_warned = ProblemHealth.model_validate({"patience": 3, "stop_on": []})
    assert {action for *_, action in judge(stream, only_warned)} == {"warned"}


def test_a_cold_start_names_the_ways_out_also_after_a_resume() -> None:
    health = ProblemHealth(patience=3)
    watcher = RuleWatcher(rules_for(health, 0.0), health.patience, health.stop_on)
    cold = {**FLAT, "reward": -1.0}
    assert [*watcher.observe(1, cold), *watcher.observe(2, cold)] == []  # read from metrics.jsonl
    watcher.resume_after(2)
    event = watcher.observe(3, cold)[0]
    assert (event.kind, event.action) == ("cold_start", "stopped")
    assert event.message.startswith("for 3 steps every completion has had the lowest")
    assert WAYS_OUT in event.message
    noticed = cold_start_note([score_reply(Problem("?", "4"), Completion("5", 1, False))], "m", "c")
    assert WAYS_OUT in (noticed or "")
    # In a folder without metrics it counts from the checkpoint.
    watcher = RuleWatcher(rules_for(health, 0.0), health.patience, health.stop_on)
    watcher.resume_after(50)
    assert [watcher.observe(step, cold) for step in (51, 52)] == [[], []]
    assert watcher.observe(53, cold)[0].message.startswith("for 3 steps")


def test_null_switches_a_sign_off() -> None:
    sick = {**dict.fromkeys(HEALTHY, 1.0), "kl": 9.0}
    for name in ("max_truncated", "min_reasoning"):
        off = ProblemHealth.model_validate({"patience": 3, name: None})
        kinds = {kind for _, kind, _ in judge([*[HEALTHY] * 3, *[sick] * 9], off)}
        assert kinds == {"flat_groups", "truncated", "reasoning", "kl"} - {name[4:]}


def test_a_reward_that_scores_nothing_stops_the_run_and_is_named() -> None:
    health = ProblemHealth(patience=3)
    watcher = RuleWatcher(rules_for(health, 0.1, ["good", "mute"]), 3, health.stop_on)
    row = {**HEALTHY, "rewards/good/unscored": 0.9, "rewards/mute/unscored": 1.0}
    warned, stopped = [event for step in range(1, 10) for event in watcher.observe(step, row)]
    assert (warned.step, warned.kind, warned.action) == (3, "unscored", "warned")
    assert (stopped.step, stopped.kind, stopped.action) == (6, "unscored", "stopped")
    assert "the reward 'mute' could not score 100% of the completions" in warned.message
    off = RuleWatcher(rules_for(ProblemHealth(max_unscored=None), 0.1, ["mute"]), 3, ["unscored"])
    assert [off.observe(step, row) for step in range(1, 10)] == [[]] * 9


def test_messages_name_figure_threshold_and_setting() -> None:
    health = ProblemHealth(patience=2)
    watcher = RuleWatcher(rules_for(health, 0.0), 2, [])
    row = {**HEALTHY, "completions/clipped_ratio": 0.875}
    (event,) = [*watcher.observe(1, row), *watcher.observe(2, row)]
    assert event.message.startswith("for 2 steps 88% of ")
    assert "(health.max_truncated = 50%): raise training.max_completion_length" in event.message
    assert (event.value, event.threshold) == (0.875, 0.5)


def updates(*steps: Any, skipped: int | None = 3, still: int | None = 2) -> HealthEvent | None:
    """The first event of steps: norms, learning rate, whether skipped, whether learnable."""
    watch = UpdateCheck(skipped, still)
    events = (watch.observe(number, *step) for number, step in enumerate(steps, 1))
    return next((event for event in events if event is not None), None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_at_once(value: float) -> None:
    event = updates(([1.0, value], 1e-6, False, True))
    assert event is not None
    assert (event.step, event.kind, event.action) == (1, "weights_not_finite", "stopped")
    assert event.message.startswith("1 of 2 trained tensors")


def test_still_weights_count_only_where_they_should_have_moved() -> None:
    still = ([1.0, 0.0], 1e-6, False, True)
    event = updates(still, still, still)
    assert event is not None and (event.step, event.kind) == (3, "still_weights")
    for excused in (
        ([1.0, 0.0], 0.0, False, True),  # warm-up starts at 0
        ([1.0, 0.0], 1e-6, False, False),  # no completion had an advantage
    ):
        assert updates(still, *[excused] * 50) is None
    moves = [([1.0, n * 1e-12], 1e-6, False, True) for n in range(50)]
    assert updates(*moves) is updates(still, still, *moves[1:3], still) is None
    assert updates(*[still] * 50, still=None) is None
    # Skipped steps count in a row.
    skip = ([1.0, 0.0], 1e-6, True, True)
    assert updates(skip, skip, moves[1], skip, skip, moves[2]) is None
    event = updates(skip, skip, skip)
    assert event is not None and (event.step, event.kind) == (3, "skipped_steps")
    assert "bf16" in event.message
    assert updates(*[skip] * 50, skipped=None) is None


def test_a_part_without_a_token_to_learn_from_has_a_weight() -> None:
    """Every completion of it was cut, and masked for that; the whole is divided by the weight."""
    import torch

    from posttrain.train.micro_batches import split_completions

    mask = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]])
    batch = {"completion_ids": torch.ones(4, 2), "completion_mask": mask}
    complete, empty = split_completions(batch, 2, "bnpo")
    assert complete.weight == 1.0 and 0 < empty.weight < 1e-6
