"""Runs of the scripts inside this process, so that a test can reach into a step of theirs.

What is injected is injected into the real thing: an error, a NaN or a signal at a chosen moment of
a training step of the demo model.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain.base import process
from posttrain.model import policy
from posttrain.train import session
from scripts import dpo, grpo, report, sft
from tests.helpers import demo_command, rows, run_script

MAIN = {"dpo": dpo.main, "grpo": grpo.main, "sft": sft.main}
SMALL = {
    "dpo": [
        "evaluation={limit: 8, replies: 2, max_new_tokens: 8, every: null}",
        "data.train.limit=300",
    ],
    "grpo": [
        "evaluation={limit: 4, max_new_tokens: 8, every: null}",
        "training.max_completion_length=24",
    ],
    "sft": ["evaluation={limit: 4, max_new_tokens: 8, every: null}", "data.holdout=8"],
}
OnForward = Callable[[int, Any], Any]
"""(rows that the trainer is at work on, hidden states or scores) -> None, or what to use now."""


@dataclass
class Now:
    """What the trainer of this process is doing."""

    phase: str = ""
    """training, generation or scoring; nothing outside of a step."""
    rows: int = 0
    micro_batches: int = 0
    """Losses asked for so far, the one at hand included; a micro-batch in parts asks for several,
    and Unsloth's GPU path may send one through the model more than once."""


NOW = Now()


def arguments(name: str, run: Path, *overrides: str, config: Path | None = None) -> list[str]:
    """A run of few small steps that is deterministic: fp32, one thread; of the demo's config
    unless another is named, which is taken as it is."""
    if config is not None:
        return ["--config", str(config), "--output", str(run), "run.threads=1", *overrides]
    return demo_command(
        *(name, run, "run.threads=1", "training.max_steps=4", "training.save_steps=2"),
        *("training.per_device_train_batch_size=16", "data.validation=0", *SMALL[name]),
        *overrides,
    )


@contextlib.contextmanager
def reported_here(reported: bool = True) -> Iterator[None]:
    """Runs are reported in this process, or not at all: a new process takes longer to start than a
    short run trains.

    The runs that tests start as processes, as those of test_demos.py, report in one, as a user's.
    """

    def start(script: str, *given: str) -> int:
        if script == "report":
            return report.main(list(given)) if reported else 0
        return process.run_script(script, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "run_script", start)
        yield


def leave_with(
    name: str, run: Path, *overrides: str, config: Path | None = None, reported: bool = True
) -> int:
    """The exit code of a run, given as to the command line."""
    with reported_here(reported), pytest.raises(SystemExit) as left:
        process.run_main(lambda: MAIN[name](arguments(name, run, *overrides, config=config)))
    return int(left.value.code or 0)


def leave_unreported(name: str, run: Path, *overrides: str) -> int:
    """As `leave_with`, without a report, which takes a third of the time of a short run."""
    return leave_with(name, run, *overrides, reported=False)


@contextlib.contextmanager
def collapse(script: Any, step: int) -> Iterator[None]:
    """From that step on, the learning rate of a script's trainers is 100 times too high."""
    from transformers import TrainerCallback

    class Collapse(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **extra: Any) -> None:
            if state.global_step >= step:
                for group in extra["optimizer"].param_groups:
                    group["lr"] = 100 * args.learning_rate

    build = script.build_trainer

    def build_to_collapse(*given: Any) -> Any:
        trainer, changed = build(*given)
        trainer.add_callback(Collapse())
        return trainer, changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "build_trainer", build_to_collapse)
        yield


def succeed(*given: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """`run_script`, of a command that must succeed."""
    result = run_script(*given, **more)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def steps(run: Path) -> list[dict[str, Any]]:
    """The metrics of optimizer steps, without those of validations."""
    return [row for row in rows(run / "metrics.jsonl") if "loss" in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in steps(run)]


def adapter(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """What a run did to the signal handlers and the output ends with the test."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: signal.getsignal(number) for number in signals}
    streams = sys.stdout, sys.stderr
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    sys.stdout, sys.stderr = streams


@pytest.fixture
def on_forward(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`on_forward(f)`: f is called after each pass through the policy's first layer, and while
    completions are generated with the scores of each token: Unsloth's decoding on a GPU calls no
    layer as a module.

    An error in the backward pass there comes when the layers above have their gradients already.
    With `last=True` it is called at the end of the last layer.
    """
    import trl
    from transformers.generation.utils import GenerationMixin

    def count_calls(owner: Any, name: str, phase: str, count: Callable[..., int]) -> None:
        real = getattr(owner, name)
        if hasattr(real, "counted"):  # by an earlier run of this test
            return

        def counted(self: Any, *given: Any, **named: Any) -> Any:
            if phase == "scoring" and learning():  # part of the loss
                return real(self, *given, **named)
            earlier = NOW.phase, NOW.rows
            NOW.phase, NOW.rows = phase, count(*given, **named)
            NOW.micro_batches += phase == "training"
            try:
                return real(self, *given, **named)
            finally:
                NOW.phase, NOW.rows = earlier

        counted.counted = True  # type: ignore[attr-defined]
        monkeypatch.setattr(owner, name, counted)

    def install(function: OnForward, last: bool = False) -> None:
        NOW.__init__()  # type: ignore[misc]  # a run of its own
        load, assemble = policy.load, GenerationMixin._get_logits_processor

        def after_layer(_: Any, __: Any, output: Any) -> Any:
            if NOW.phase == "generation":
                return None
            states = output[0] if isinstance(output, tuple) else output
            result = function(NOW.rows or len(states), states)
            return result if result is None or states is output else (result, *output[1:])

        def at_each_token(self: Any, *given: Any, **named: Any) -> Any:
            result = assemble(self, *given, **named)
            if NOW.phase == "generation":
                result.append(lambda ids, scores: (function(NOW.rows, scores), scores)[1])
            return result

        def loaded(*given: Any) -> Any:
            model, tokenizer = load(*given)
            layers = model.get_base_model().model.layers
            layers[-1 if last else 0].register_forward_hook(after_layer)
            for trainer in (trl.SFTTrainer, trl.DPOTrainer, trl.GRPOTrainer):
                count_calls(trainer, "compute_loss", "training", _count_rows)
            count_calls(
                trl.GRPOTrainer,
                "_generate_single_turn",
                "generation",
                lambda ids, *_, **__: len(ids),
            )
            score = "_get_per_token_logps_and_entropies"
            count_calls(trl.GRPOTrainer, score, "scoring", lambda _, ids, *__, **___: len(ids))
            return model, tokenizer

        monkeypatch.setattr(policy, "load", loaded)
        monkeypatch.setattr(GenerationMixin, "_get_logits_processor", at_each_token)

    return install


def _count_rows(_: Any, inputs: Any, *__: Any, **___: Any) -> int:
    """Rows of a micro-batch as the model sees them: a pair is two."""
    return len(inputs["completion_ids" if "completion_ids" in inputs else "input_ids"])


def learning() -> bool:
    """Whether the pass at hand is one that will be differentiated."""
    import torch

    return torch.is_grad_enabled()
