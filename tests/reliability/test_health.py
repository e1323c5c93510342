"""A real run of the demo model stops when it should, and goes on when memory is short."""

import math
import re
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from posttrain.model import runtime
from posttrain.run.checkpoint import verify
from posttrain.train.micro_batches import (
    COMPLETION_LOSSES,
    PAIR_LOSSES,
    REPLY_LOSSES,
    scored_tokens,
)
from tests.e2e import trainers
from tests.helpers import Capsys, read, rows
from tests.reliability.inside import (
    MAIN,
    NOW,
    OnForward,
    adapter,
    arguments,
    learning,
    leave_unreported,
    leave_with,
    losses,
    steps,
)

Install = Callable[..., None]
EVERY = pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
GRPO_QUICK = pytest.mark.parametrize("name", ["grpo", pytest.param("dpo", marks=pytest.mark.long)])
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, while trainers are built
FEW_ROWS = {name: ["data.train.limit=100"] for name in ("sft", "grpo")} | {
    "dpo": ["data.train.limit=110", "data.holdout=8"]
}


def leave(name: str, run: Path, *overrides: str) -> int:
    """The exit code of a run on few rows, without the scores and the report."""
    return leave_unreported(name, run, "run.score=false", *FEW_ROWS[name], *overrides)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def assert_no_bad_checkpoint(run: Path) -> None:
    from safetensors.torch import load_file

    assert newest(run).name == "step-000002"
    assert verify(newest(run)) is None
    weights = load_file(newest(run) / "adapter_model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert not (run / "adapter").exists()


@EVERY
def test_nan_loss_stops_the_same_step(
    name: str, tmp_path: Path, on_forward: Install, capsys: Capsys
) -> None:
    """At step 4, whose checkpoint is due, with metrics logged at every third step only."""
    run = tmp_path / name

    def inject(_: int, states: Any) -> Any:
        return states * math.nan if learning() and NOW.micro_batches == 4 else None

    on_forward(inject)
    assert leave_with(name, run, "training.logging_steps=3") == 3
    output = capsys.readouterr().err
    batch = run / "health" / "step-000004" / "batch.json"
    assert "step 4: the loss is nan" in output and str(batch) in output and "step-000002" in output
    assert "--resume-anyway" in output and "Traceback" not in output
    (event,) = rows(run / "health.jsonl")
    assert (event["step"], event["kind"]) == (4, "loss_not_finite")
    assert event["action"] == "stopped"
    stopped = read(run / "environment.json")["trained"]
    assert stopped["exit_code"] == 3 and "the loss is nan" in stopped["reason"]
    assert (run / "report.html").exists()
    assert_no_bad_checkpoint(run)
    content = read(batch)
    assert content["step"] == 4 and content["losses"] == ["NaN"]
    assert len(content["rows"]) == 16
    for row in content["rows"]:
        assert row["prompt"].startswith("<|im_start|>system")
        assert row["prompt"].endswith("<|im_start|>assistant\n")
        if name == "sft":
            assert row["reply"].endswith("</answer><|im_end|>")
        elif name == "dpo":
            assert row["chosen"].endswith("<|im_end|>") and row["chosen"] != row["rejected"]
        else:
            assert row["completion"]
            assert set(row["rewards"]) == {"format", "correctness"}
            assert isinstance(row["advantage"], float)


@GRPO_QUICK
def test_nan_gradient_stops_before_the_checkpoint(
    name: str, tmp_path: Path, on_forward: Install
) -> None:
    """The loss is finite; the weights are not after the step."""
    run = tmp_path / name

    def inject(_: int, states: Any) -> None:
        if learning() and NOW.micro_batches == 4:
            states.register_hook(lambda gradient: gradient * math.nan)

    on_forward(inject)
    assert leave(name, run) == 3
    (event,) = rows(run / "health.jsonl")
    assert (event["step"], event["kind"]) == (4, "weights_not_finite")
    assert (run / "health" / "step-000004" / "batch.json").exists()
    assert_no_bad_checkpoint(run)


def test_weights_that_do_not_move_stop_the_run(tmp_path: Path, on_forward: Install) -> None:
    """As when nothing that is trained reaches the loss."""
    run = tmp_path / "dpo"
    on_forward(
        lambda _, states: states.detach().requires_grad_() if learning() else None, last=True
    )
    assert leave("dpo", run, "health.max_still_steps=2") == 3
    (event,) = rows(run / "health.jsonl")
    assert (event["step"], event["kind"], event["value"]) == (3, "still_weights", 2)


def test_cut_completions_that_are_masked_have_nothing_to_learn_from(tmp_path: Path) -> None:
    """The weights rightly stay, whatever the advantages, so the learning rate is not to blame."""
    (tmp_path / "long.py").write_text(
        "def long(completions, **columns):\n"
        "    return [float(len(reply[0]['content'])) for reply in completions]\n"
    )
    run = tmp_path / "run"
    masked = ["training.mask_truncated_completions=true", "training.max_completion_length=3"]
    reward = f"rewards={{'{tmp_path / 'long.py'}:long': 1}}"
    assert leave("grpo", run, "health.max_still_steps=2", reward, *masked) == 0
    assert [(row["loss"], row["grad_norm"]) for row in steps(run)] == [(0, 0)] * 4
    assert all(row["completions/clipped_ratio"] == 1 for row in steps(run))
    assert all(row["reward_std"] > 0 for row in steps(run))


def test_sign_warns_then_stops_where_asked(tmp_path: Path, capsys: Capsys) -> None:
    run = tmp_path / "grpo"
    signs = ["health.patience=1", "health.max_truncated=0.01", "training.max_completion_length=4"]
    assert leave("grpo", run, *signs, "health.stop_on=[truncated]") == 3
    warned, stopped = (e for e in rows(run / "health.jsonl") if e["kind"] == "truncated")
    assert (warned["step"], warned["action"]) == (1, "warned")
    assert (stopped["step"], stopped["action"]) == (2, "stopped")
    assert "warning: step 1: for 1 step 100% of the completions" in capsys.readouterr().out


def out_of_memory(at_most: int, where: str, failed: list[int], first: int = 2) -> OnForward:
    """Memory runs out in `where`, of more than `at_most` rows; in training from the second
    micro-batch on, so that there is a gradient to lose already. Sizes that fail go into `failed`.
    """
    import torch

    def inject(rows_now: int, states: Any) -> None:
        def fail(*_: Any) -> None:
            failed.append(rows_now)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB (injected)")

        if rows_now <= at_most or (NOW.phase == "training" and NOW.micro_batches < first):
            return
        if where == "backward" and NOW.phase == "training" and learning():
            states.register_hook(fail)
        elif where == NOW.phase or (where == "forward" and NOW.phase == "training"):
            fail()

    return inject


def assert_close(run: Path, other: Path) -> None:
    assert len(losses(run)) == 3
    for mine, theirs in zip(losses(run), losses(other), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    weights, others = adapter(run), adapter(other)
    for key in others:
        assert float((weights[key] - others[key]).abs().max()) < 1e-5, key


def in_two(name: str) -> list[str]:
    """Steps of two micro-batches; of DPO without sft, whose mean is over a micro-batch's tokens."""
    loss = ["training.loss_type=[sigmoid]"] if name == "dpo" else []
    steps = ["training.max_steps=3", "training.save_steps=3"]
    return ["training.gradient_accumulation_steps=2", *steps, *loss]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of every training script with memory enough."""
    runs = {name: tmp_path_factory.mktemp("complete") / name for name in MAIN}
    for name, run in runs.items():
        assert leave(name, run, *in_two(name)) == 0
    return runs


WILD = """
def wild(completions, trainer_state, **columns):
    late = trainer_state.global_step >= 2
    return {0} if late else [1.0] * len(completions)
"""


@pytest.mark.parametrize(
    ("value", "output"),
    [
        ("1 / 0", r"step 3: reward '.*wild.py:wild' raised ZeroDivisionError: .*, line 4\)"),
        ("[None] * len(completions)", "step 4: for 2 steps the reward '.*wild' could not score"),
    ],
)
def test_a_reward_that_goes_wild_stops_the_run(
    tmp_path: Path, capsys: Capsys, value: str, output: str
) -> None:
    """Not with a traceback, and with its checkpoint whole."""
    (tmp_path / "wild.py").write_text(WILD.format(value))
    rewards = f"rewards={{format: 1, '{tmp_path / 'wild.py'}:wild': 1}}"
    assert leave("grpo", tmp_path / "run", "health.patience=1", rewards) == 3
    assert re.search(output, capsys.readouterr().err)
    assert_no_bad_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("sft", "backward"),
        ("dpo", "backward"),
        ("grpo", "forward"),
        pytest.param("dpo", "forward", marks=pytest.mark.long),
        pytest.param("grpo", "backward", marks=pytest.mark.long),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    name: str,
    where: str,
    tmp_path: Path,
    on_forward: Install,
    whole_run: dict[str, Path],
    capsys: Capsys,
) -> None:
    run, failed = tmp_path / name, list[int]()
    pair = 2 if name == "dpo" else 1  # rows of the model
    on_forward(out_of_memory(5 * pair, where, failed))
    assert leave(name, run, *in_two(name)) == 0
    halvings = rows(run / "health.jsonl")
    assert [(e["threshold"], e["value"]) for e in halvings] == [(16, 8), (8, 4)]
    assert {(e["step"], e["kind"], e["action"]) for e in halvings} == {
        (1, "out_of_memory_training", "halved")
    }
    assert set(failed) == {16 * pair, 8 * pair}
    assert failed == sorted(failed, reverse=True)  # the smaller size is kept
    assert "note: step 1: out of memory in training with 16" in capsys.readouterr().out
    metrics, others = (rows(path / "metrics.jsonl") for path in (run, whole_run[name]))
    assert metrics[1]["rows_at_once"] == 4
    figures = ("rewards/margins", "entropy", "completion_length", "num_tokens")
    for figure in [each for each in figures if each in others[2]][:1]:  # Unsloth's SFT logs none
        assert metrics[2][figure] == pytest.approx(others[2][figure], rel=0.05)
    assert metrics[2].get("num_tokens") == others[2].get("num_tokens")
    assert_close(run, whole_run[name])


@pytest.mark.parametrize(
    ("where", "beta"), [("generation", 0), pytest.param("scoring", 0.04, marks=pytest.mark.long)]
)
def test_out_of_memory_elsewhere_leaves_training_alone(
    where: str, beta: float, tmp_path: Path, on_forward: Install
) -> None:
    """The reference is scored at beta above 0, after a generation and without a gradient."""
    run, failed = tmp_path / "grpo", list[int]()
    on_forward(out_of_memory(7, where, failed))
    assert leave("grpo", run, f"training.beta={beta}", "training.max_steps=2") == 0
    halvings = rows(run / "health.jsonl")
    assert [(e["threshold"], e["value"]) for e in halvings] == [(16, 8), (8, 4)]
    assert {e["kind"] for e in halvings} == {f"out_of_memory_{where}"}
    assert set(failed) == {16, 8} and len(losses(run)) == 2
    assert all("rows_at_once" not in row for row in steps(run))


@GRPO_QUICK
def test_no_room_for_one_row_stops_with_what_would_fit(
    name: str, tmp_path: Path, on_forward: Install, capsys: Capsys
) -> None:
    run = tmp_path / name
    on_forward(out_of_memory(0, "forward", [], first=1))
    small = "training.per_device_train_batch_size=" + ("2" if name == "dpo" else "8")
    assert leave(name, run, small) == 3
    assert rows(run / "health.jsonl")[-1]["action"] == "stopped"
    output = capsys.readouterr().err
    assert "at once, and smaller parts cannot help" in output
    for setting in ("model.max_seq_length below 256", "training.gradient_checkpointing: true"):
        assert setting in output
    assert ("training.max_completion_length below 24" in output) == (name == "grpo")


def assert_parts_add_up(trainer: Any, inputs: Any, tokens: Any = None) -> None:
    """Loss and gradient of a micro-batch of 8 in parts of 3, 3 and 2 are those of all 8."""
    import torch

    assert trainer.divisible()
    results = []
    for trainer.rows_at_once in (None, 3):
        torch.manual_seed(1)
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, copy(inputs), tokens)
        results.append((float(loss), [weight.grad.clone() for weight in trainer.watch.weights]))
    assert [trainer.count(part.inputs) for part in trainer._parts] == [3, 3, 2]
    (complete, gradient), (parts, others) = results
    assert complete != 0 and parts == pytest.approx(complete, rel=1e-4, abs=1e-6)
    largest = max(float(g.abs().max()) for g in gradient)
    assert largest > 0
    for mine, theirs in zip(gradient, others, strict=True):
        assert float((mine - theirs).abs().max()) < 1e-4 * largest


def test_parts_of_pairs_add_up(tmp_path: Path) -> None:
    """Four sums of losses, each with every fourth of all."""
    trainer, inputs = build("dpo", tmp_path)
    trainer.label_smoothing = 0.1
    for first in range(4):
        trainer.loss_types = [*list(PAIR_LOSSES)[first::4], "sft"]
        trainer.loss_weights = [0.7] * (len(trainer.loss_types) - 1) + [0.3]
        assert_parts_add_up(trainer, inputs)


def test_parts_of_completions_add_up(tmp_path: Path) -> None:
    """They are off-policy, so that some tokens are clipped."""
    trainer, inputs = build("grpo", tmp_path)
    batch = off_policy(trainer, inputs)
    trainer._generate_and_score_completions = lambda _: dict(batch)
    cases = [(loss_type, "token") for loss_type in COMPLETION_LOSSES]
    for loss_type, level in [*cases, *((each, "sequence") for each in ("luspo", "grpo", "cispo"))]:
        trainer.loss_type = trainer.args.loss_type = loss_type  # Unsloth reads the second
        trainer.importance_sampling_level = level
        assert_parts_add_up(trainer, inputs)


@pytest.mark.parametrize("loss", REPLY_LOSSES)
def test_parts_of_replies_add_up(loss: str, tmp_path: Path) -> None:
    """With the tokens of a step of two micro-batches counted, as transformers does, and without."""
    trainer, inputs = build("sft", tmp_path, f"training.loss_type={loss}")
    for tokens in (2 * scored_tokens(inputs), None):
        assert_parts_add_up(trainer, inputs, tokens)


def test_a_loss_of_which_the_rows_do_not_add_up_is_not_divided(tmp_path: Path) -> None:
    """Also where the number of rows that fit comes from a run with another loss."""
    trainer, inputs = build("dpo", tmp_path)
    trainer.loss_types, trainer.loss_weights, trainer.rows_at_once = ["aot"], [1.0], 3
    trainer.training_step(trainer.model, inputs, None)
    assert len(trainer._parts) == 1
    trainer.loss_types = ["of a later trl"]
    assert not trainer.divisible()


def off_policy(trainer: Any, inputs: Any) -> dict[str, Any]:
    """A rollout of 8 completions of 1 to 8 tokens with other advantages and log-probabilities."""
    import torch

    batch = trainer._generate_and_score_completions(inputs)
    columns = torch.arange(batch["completion_ids"].shape[1]).to(batch["completion_ids"].device)
    lengths = torch.arange(1, 9).to(columns.device)
    batch["completion_mask"] = batch["completion_mask"] * (columns < lengths[:, None])
    padding = trainer.processing_class.pad_token_id  # Unsloth makes the mask again from it
    batch["completion_ids"][batch["completion_mask"] == 0] = padding
    parts = [
        torch.cat([batch[f"prompt_{key}"], batch[f"completion_{key}"]], 1)
        for key in ("ids", "mask")
    ]
    with torch.no_grad():
        old = trainer._get_per_token_logps_and_entropies(trainer.model, *parts, len(columns))[0]
    shift = torch.linspace(-1, 1, old.numel()).view(*reversed(old.shape)).T.to(old.device)
    advantages = torch.linspace(-1, 1, 8).to(old.device)
    return {**batch, "old_per_token_logps": old + shift, "advantages": advantages}


@pytest.mark.parametrize("loss_type", COMPLETION_LOSSES)
def test_flat_micro_batch_needs_no_pass(
    loss_type: str, flat: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are those of a pass to the last bit, also where there were none; so is what is
    logged, but for the entropy, of which nothing is known without a pass."""
    import torch

    trainer, inputs = flat
    trainer.loss_type = trainer.args.loss_type = loss_type
    weights = trainer.watch.weights
    score, passes = trainer._get_per_token_logps_and_entropies, []

    def counted(*arguments: Any, **named: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return score(*arguments, **named)

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", counted)
    results = []
    for skipped in (True, False):
        if not skipped:
            monkeypatch.setattr(trainer, "_is_flat", lambda batch: False)
        for earlier in (None, 1.0):
            torch.manual_seed(1)
            for weight in weights:
                weight.grad = earlier and torch.randn_like(weight)
            trainer._metrics["train"].clear()
            passes.clear()
            step = trainer._step
            loss = trainer.training_step(trainer.model, inputs, None)
            assert any(passes) == (not skipped)
            assert trainer._step == step + 1
            assert float(loss) == 0
            logged = {key: value for key, (value,) in trainer._metrics["train"].items()}
            assert len(trainer.watch._last) == 1 and not trainer.watch._learnable
            results.append((logged, [weight.grad.clone() for weight in weights]))
    unequal = {"step_time", "num_tokens", "entropy", "vespo/phi_seq_mean"}
    unequal |= {"kl", "completion_length"}  # Unsloth's
    for (mine, gradient), (theirs, others) in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(gradient, others, strict=True))
        assert {k: v for k, v in mine.items() if k not in unequal} == {
            k: v for k, v in theirs.items() if k not in unequal
        }


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A trainer whose completions all earn the same, and rows for it."""
    import torch

    trainer, inputs = build("grpo", tmp_path_factory.mktemp("flat"), "training.beta=0")

    def equal(*_: Any) -> Any:
        trainer._rewards = torch.ones(8, 2, device=trainer.accelerator.device)
        return trainer._rewards

    trainer._calculate_rewards = equal
    return trainer, inputs


def test_what_has_a_gradient_is_not_flat(flat: tuple[Any, Any]) -> None:
    import torch

    trainer, _ = flat
    batch = {"flat": torch.ones(4, dtype=torch.bool)}
    assert trainer._is_flat(batch)
    assert not trainer._is_flat({"flat": torch.arange(4) > 0})
    for name, value in (("beta", 0.04), ("_entropy_bonus_enabled", True)):
        usual = getattr(trainer, name)
        setattr(trainer, name, value)
        assert not trainer._is_flat(batch)
        setattr(trainer, name, usual)


def build(name: str, tmp_path: Path, *overrides: str) -> tuple[Any, Any]:
    """A watched trainer whose adapter is not fresh, and 8 rows for a training step."""
    import torch

    runtime.start(verbose=False, threads=1)
    few = arguments(name, tmp_path, "training.per_device_train_batch_size=8")[4:]
    few += FEW_ROWS[name]
    if name == "grpo":
        few += ["training.num_generations=4", "training.max_completion_length=8"]
        few += ["training.beta=0.04"]
    count = None if name == "grpo" else 8
    built = trainers.build(name, tmp_path, *few, *overrides, count=count)
    trainer = built.trainer
    trainers.move(built.model, 0.02)
    torch.manual_seed(0)
    trainer.current_gradient_accumulation_steps = 1
    built.watch()
    taken = [trainer.train_dataset[i if count else i // 4] for i in range(8)]
    return trainer, trainer.data_collator(taken) if count else taken


@EVERY
def test_a_batch_of_32_and_twice_16_are_the_same_run(
    name: str, tmp_path: Path, whole_run: dict[str, Path]
) -> None:
    """Per-device batch x accumulation. GRPO's rollouts are the same because both generate the 32
    completions of a step at once."""
    once = tmp_path / "once"
    shape = ["training.per_device_train_batch_size=32", "training.gradient_accumulation_steps=1"]
    assert leave(name, once, *in_two(name), *shape) == 0
    mine, theirs = losses(once), losses(whole_run[name])
    assert len(mine) == 3 and sum(abs(loss) > 1e-3 for loss in mine) >= 2
    assert mine == pytest.approx(theirs, abs=1e-4)


def test_resumed_run_keeps_its_health_record_and_its_sizes(
    tmp_path: Path, on_forward: Install, capsys: Capsys
) -> None:
    """The run of other settings is refused, and state lines show the metrics of their steps."""
    run, failed = tmp_path / "dpo", list[int]()
    on_forward(out_of_memory(16, "forward", failed))
    assert leave("dpo", run, "health.every=1", "run.max_minutes=0.00001") == 0
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-000001"]
    assert not (run / "adapter").exists()
    assert leave("dpo", run, "training.learning_rate=0.1") == 2
    printed = capsys.readouterr()
    assert "run.max_minutes is over" in printed.out
    assert "settings.training.learning_rate was" in printed.err
    assert leave("dpo", run, "health.every=1") == 0
    assert [row["step"] for row in rows(run / "health.jsonl")] == [2]
    assert set(failed) == {32}
    lines = (printed.out + capsys.readouterr().out).splitlines()
    assert len(steps(run)) == 4
    for row in steps(run):
        line = next(line for line in lines if line.startswith(f"step {row['step']}/4: "))
        assert re.search(rf"margin {row['rewards/margins']:.3g}[ ,]", line)
