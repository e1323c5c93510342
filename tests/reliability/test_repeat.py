"""A repeat that is stopped and killed goes on, and ends with the same files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.long
FEW = [
    *("training.max_steps=12", "training.save_steps=2", "training.per_device_train_batch_size=16"),
    *("training.max_completion_length=24", "evaluation={limit: 20, max_new_tokens: 24}"),
    *("data.validation=0", "run.threads=1"),
]


def command(output: Path) -> list[str]:
    config = str(ROOT / "configs" / "grpo_demo.yaml")
    script = [sys.executable, str(ROOT / "scripts" / "repeat.py"), "grpo"]
    return [*script, "--seeds", "1,2", "--config", config, "--output", str(output), *FEW]


def finish(output: Path) -> str:
    """Repeat up to the end; returns what was printed."""
    done = subprocess.run(command(output), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def at_checkpoint(output: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A repeat of which the run of `seed` has just written its first checkpoint."""
    checkpoint = output / f"seed-{seed}" / "checkpoints" / "step-000002"
    with subprocess.Popen(command(output), stderr=subprocess.PIPE, text=True) as repeat:
        while not checkpoint.exists():
            assert repeat.poll() is None
            time.sleep(0.02)
        yield repeat


def results(output: Path) -> dict[str, bytes]:
    names = ("before.jsonl", "after.jsonl", "comparison.json")
    files = [output / "seeds.json", *(output / f"seed-{n}/eval/{x}" for n in (1, 2) for x in names)]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def test_stopped_in_the_first_seed_and_killed_in_the_second(tmp_path: Path) -> None:
    complete, broken = tmp_path / "complete", tmp_path / "broken"
    printed = finish(complete)
    assert "2 seeds, mean ± standard deviation" in printed
    result = json.loads((complete / "seeds.json").read_text(encoding="utf-8"))
    assert result["seeds"] == [1, 2] and result["measures"]["strict"]["difference"]
    first, second = ((complete / f"seed-{n}/metrics.jsonl").read_text() for n in (1, 2))
    assert first != second

    with at_checkpoint(broken, 1) as repeat:
        repeat.send_signal(signal.SIGTERM)
        errors = repeat.communicate(timeout=120)[1]
    assert repeat.returncode == 143
    assert "Seed 1 ended with code 143; the same command resumes from there" in errors
    assert not (broken / "seed-2").exists() and not (broken / "seeds.json").exists()

    with at_checkpoint(broken, 2) as repeat:
        finished = (broken / "seed-1" / "eval" / "comparison.json").stat().st_mtime_ns
        (run,) = psutil.Process(repeat.pid).children()
        os.kill(repeat.pid, signal.SIGKILL)
        run.kill()
        run.wait(60)
    assert not (broken / "seed-2" / "eval" / "comparison.json").exists()

    printed = finish(broken)
    assert "Seed 1: finished" in printed and "Resuming from step" in printed
    assert (broken / "seed-1" / "eval" / "comparison.json").stat().st_mtime_ns == finished
    assert results(broken) == results(complete)
