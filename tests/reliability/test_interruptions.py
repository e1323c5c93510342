"""Runs that are killed, stopped or out of disk lose nothing, and go on as the same run."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import demo_command, read, start_script
from tests.reliability.inside import leave_with, steps, succeed
from tests.warm import Process

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, while trainers are built
STEPS = 6
PROBLEMS = "path: assets/demo_data/problems_test.jsonl, limit: 4, max_new_tokens: 80"
ALSO = f"evaluation.also=[{{name: arithmetic, {PROBLEMS}}}]"
SMALL = {
    "grpo": [
        # Two generations a step, as in the configs of larger models.
        *("training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=2"),
        *("training.steps_per_generation=1", "training.max_completion_length=32"),
        "evaluation={limit: 8, every: 2, max_new_tokens: 32}",
    ],
    "dpo": [
        "training.per_device_train_batch_size=8",
        "evaluation={limit: 8, replies: 4, every: 2}",
        ALSO,
    ],
    "sft": ["training.per_device_train_batch_size=8", "evaluation={limit: 8, every: 2}"],
}


def arguments(name: str, run: Path, *more: str) -> list[str]:
    """A run of a few steps that is deterministic: fp32, one thread."""
    return demo_command(
        *(name, run, f"training.max_steps={STEPS}", "training.save_steps=2", "run.threads=1"),
        *("data.validation=8", *SMALL[name], *more),
    )


def losses(run: Path) -> list[tuple[int, Any, Any]]:
    """(step, loss, gradient norm) of every step, unrounded."""
    return [(row["step"], row["loss"], row["grad_norm"]) for row in steps(run)]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def scores(run: Path) -> bytes:
    """Those from before, which a resumed run read back from disk, and those from after."""
    return (run / "eval" / "comparison.json").read_bytes()


def run_here(name: str, run: Path) -> None:
    """Such a run inside this process, without its report."""
    _, config, _, _, *given = arguments(name, run)
    assert leave_with(name, run, *given, config=Path(config), reported=False) == 0


def start(name: str, run: Path, *more: str) -> Process | subprocess.Popen[str]:
    return start_script(name, *arguments(name, run, *more))


def wait_for(
    process: Process | subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 300
) -> None:
    """Wait until `ready`, while the process runs."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("sft", "dpo")]


@pytest.fixture(scope="module", params=["grpo", *LONG])
def complete(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name, folder) of an uninterrupted run."""
    run = tmp_path_factory.mktemp("complete") / request.param
    run_here(request.param, run)
    assert [step for step, *_ in losses(run)] == list(range(1, STEPS + 1))
    return request.param, run


def assert_same(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    assert adapter(run) == adapter(other)
    validations, kept = "eval/validation.jsonl", "environment.json"
    assert (run / validations).read_bytes() == (other / validations).read_bytes()
    assert read(run / kept)["kept"] == read(other / kept)["kept"]


def test_killed_run_goes_on_as_the_same_run(complete: tuple[str, Path], tmp_path: Path) -> None:
    name, reference = complete
    run = tmp_path / name
    process = start(name, run)
    checkpoint = run / "checkpoints" / "step-000004"
    wait_for(process, lambda: (checkpoint / "manifest.json").exists())
    process.kill()
    process.communicate()
    before = (run / "eval" / "before.jsonl").read_bytes()
    run_here(name, run)
    assert_same(run, reference)
    assert (run / "eval" / "before.jsonl").read_bytes() == before
    assert scores(run) == scores(reference)
    assert not (run / "checkpoints" / ".staging").exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments(complete: tuple[str, Path], tmp_path: Path) -> None:
    """Five of them while a checkpoint is being written."""
    name, reference = complete
    generator = random.Random(20)
    for number in range(20):
        run = tmp_path / f"{name}-{number}"
        process = start(name, run)
        if number % 4 == 0:
            staging = run / "checkpoints" / ".staging"
            wait_for(process, lambda: any(staging.glob("checkpoint-*/*")))  # noqa: B023
        else:
            wait_for(process, lambda: (run / "metrics.jsonl").exists())  # noqa: B023
            time.sleep(generator.uniform(0, 6))
        process.kill()
        process.communicate()
        run_here(name, run)
        assert_same(run, reference)


@pytest.mark.long
def test_another_seed_is_another_run(complete: tuple[str, Path], tmp_path: Path) -> None:
    """That the same seed gives the same run is what the other tests show."""
    name, reference = complete
    succeed(name, *arguments(name, tmp_path / "other", "training.seed=43"))
    assert losses(tmp_path / "other") != losses(reference)
