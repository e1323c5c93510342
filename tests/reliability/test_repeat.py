"""A stopped repeat resumes; other tests show that its runs resume bit for bit."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, demo_command, read
from tests.reliability.inside import losses

pytestmark = pytest.mark.long
FEW = [
    *("training.max_steps=6", "training.save_steps=2", "training.per_device_train_batch_size=16"),
    *("training.max_completion_length=24", "evaluation={limit: 20, max_new_tokens: 24}"),
    *("data.validation=0", "run.threads=1"),
]


def test_stopped_in_the_second_seed(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "repeat.py"), "grpo", "--seeds", "1,2"]
    command = [*script, *demo_command("grpo", tmp_path, *FEW)]
    first, second = tmp_path / "seed-1", tmp_path / "seed-2"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as repeat:
        while not (second / "checkpoints" / "step-000002").exists():
            assert repeat.poll() is None
            time.sleep(0.02)
        repeat.send_signal(signal.SIGTERM)
        errors = repeat.communicate(timeout=120)[1]
    assert repeat.returncode == 143
    assert "Seed 2 ended with code 143; the same command resumes from there" in errors
    assert not (second / "eval" / "comparison.json").exists()
    assert not (tmp_path / "seeds.json").exists()
    finished = (first / "eval" / "comparison.json").stat().st_mtime_ns

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Seed 1: finished" in done.stdout and "Resuming from step" in done.stdout
    assert "2 seeds, mean ± standard deviation" in done.stdout
    assert (first / "eval" / "comparison.json").stat().st_mtime_ns == finished
    result = read(tmp_path / "seeds.json")
    assert result["seeds"] == [1, 2] and "difference" in result["measures"]["strict"]
    assert losses(first) != losses(second)
