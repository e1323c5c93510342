"""Runs that are killed, stopped or out of disk lose nothing, and go on as the same run."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers import ROOT, run_script, start_script
from tests.reliability.inside import read, rows, succeed
from tests.warm import Process

STEPS = 8
PROBLEMS = "path: assets/demo_data/problems_test.jsonl, limit: 4, max_new_tokens: 80"
ALSO = f"evaluation.also=[{{name: arithmetic, {PROBLEMS}}}]"
SMALL = {
    "grpo": [
        # Two generations a step, as in the configs of larger models.
        *("training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=2"),
        *("training.steps_per_generation=1", "evaluation={limit: 8, every: 2}"),
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
    return [
        *("--config", str(ROOT / "configs" / f"{name}_demo.yaml"), "--output", str(run)),
        *(f"training.max_steps={STEPS}", "training.save_steps=2", "run.threads=1"),
        *("data.validation=8", *SMALL[name]),
        *more,
    ]


def losses(run: Path) -> list[tuple[int, Any, Any]]:
    """(step, loss, gradient norm) of every step, unrounded."""
    logged = rows(run / "metrics.jsonl")
    return [(r["step"], r["loss"], r["grad_norm"]) for r in logged if "grad_norm" in r]


def adapter(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def scores(run: Path) -> bytes:
    """Those from before, which a resumed run read back from disk, and those from after."""
    return (run / "eval" / "comparison.json").read_bytes()


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
    succeed(request.param, *arguments(request.param, run))
    assert [step for step, *_ in losses(run)] == list(range(1, STEPS + 1))
    return request.param, run


def validations(run: Path) -> bytes:
    return (run / "eval" / "validation.jsonl").read_bytes()


def assert_same(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    assert adapter(run) == adapter(other)
    assert validations(run) == validations(other)
    kept, expected = (read(folder / "environment.json")["kept"] for folder in (run, other))
    assert kept == expected


def test_killed_run_goes_on_as_the_same_run(complete: tuple[str, Path], tmp_path: Path) -> None:
    name, reference = complete
    run = tmp_path / name
    process = start(name, run)
    checkpoint = run / "checkpoints" / "step-000004"
    wait_for(process, lambda: (checkpoint / "manifest.json").exists())
    process.kill()
    process.communicate()
    before = (run / "eval" / "before.jsonl").read_bytes()
    succeed(name, *arguments(name, run))
    assert_same(run, reference)
    assert (run / "eval" / "before.jsonl").read_bytes() == before
    assert scores(run) == scores(reference)
    assert not (run / "checkpoints" / ".staging").exists()


def test_a_kill_in_the_middle_of_the_last_report_costs_nothing(tmp_path: Path) -> None:
    """The same command, or ./run report, makes it."""
    run = tmp_path / "sft"
    few = ["training.max_steps=2", "data.validation=0", "evaluation.limit=4"]
    process = start("sft", run, *few)
    wait_for(process, lambda: (run / "eval" / "comparison.json").exists())
    child = wait_for_report(process)
    for each in (process, child):
        each.kill()
    process.communicate(timeout=60)
    child.wait(60)
    assert not (run / "report.html").exists()
    result = run_script("sft", *arguments("sft", run, *few))
    assert result.returncode == 0 and "is a finished run" in result.stdout, result.stderr
    assert (run / "README.md").exists() and (run / "report.html").exists()


def wait_for_report(process: Process | subprocess.Popen[str]) -> psutil.Process:
    """Its child process that reports, once it is there."""
    script, actual = str(ROOT / "scripts" / "report.py"), []

    def ready() -> bool:
        children = psutil.Process(process.pid).children()
        actual[:] = [child for child in children if script in child.cmdline()]
        return bool(actual)

    wait_for(process, ready)
    return actual[0]


@pytest.mark.long
def test_time_limit_stops_with_exit_0(complete: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = complete
    run = tmp_path / name
    result = succeed(name, *arguments(name, run, "run.max_minutes=0.00001"))
    assert "run.max_minutes is over" in result.stdout
    assert not (run / "eval" / "comparison.json").exists()
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    other = run_script(name, *arguments(name, run, "training.learning_rate=0.1"))
    assert other.returncode == 2
    assert "settings.training.learning_rate was" in other.stderr
    for file in sorted(checkpoint.iterdir()):  # the only checkpoint, damaged file by file
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2])
        result = run_script(name, *arguments(name, run, "--dry-run"))
        assert result.returncode == 2, file.name
        assert "all 1 checkpoints are damaged" in result.stderr
        (aside,) = (run / "checkpoints").glob("*.damaged")
        (aside / file.name).write_bytes(kept)
        shutil.move(aside, checkpoint)


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
        succeed(name, *arguments(name, run))
        assert_same(run, reference)


@pytest.mark.long
def test_another_seed_is_another_run(complete: tuple[str, Path], tmp_path: Path) -> None:
    """That the same seed gives the same run is what the other tests show."""
    name, reference = complete
    succeed(name, *arguments(name, tmp_path / "other", "training.seed=43"))
    assert losses(tmp_path / "other") != losses(reference)


@pytest.mark.long  # test_extension has the short one
def test_a_finished_run_is_trained_on_with_the_steps_of_now(tmp_path: Path) -> None:
    """Also where it logs more rarely than before; and a card that a kill left out is made up. The
    number of threads, on which sums depend, stays that of the first start."""
    run = tmp_path / "dpo"
    few = ["training.max_steps=2", "data.validation=0", "evaluation={limit: 4, replies: 2}"]
    assert run_script("dpo", *arguments("dpo", run, *few)).returncode == 0
    checkpoint = str(run / "checkpoints" / "step-000002")
    more = ["training.max_steps=6", "training.logging_steps=2", "training.save_steps=3"]
    again = arguments("dpo", run, *few, *more, "run.threads=null")
    resumed = [*again, "--resume", checkpoint, "--resume-anyway"]
    result = run_script("dpo", *resumed, OMP_NUM_THREADS="2")
    assert result.returncode == 0 and "Training was done" not in result.stdout, result.stderr
    environment = read(run / "environment.json")
    assert environment["trained"]["steps"] == 6
    assert environment["threads"] == 1 and "on the CPU, 1 thread," in result.stdout
    assert [step for step, *_ in losses(run)] == [1, 2, 4, 6]
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved[-2:] == ["step-000003", "step-000006"]

    (run / "README.md").unlink()
    result = run_script("dpo", *again)
    assert result.returncode == 0 and "is a finished run" in result.stdout
    assert (run / "README.md").is_file()
