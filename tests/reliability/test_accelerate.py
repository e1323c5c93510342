"""`accelerate launch` with two processes: one run folder, one loss curve, one way to stop.

Two processes with half the batch each see the same rows a step as one process with the whole, and
DDP averages their gradients; so DPO's curve must be the same. GRPO samples its completions, from
other random numbers in every process: there, the start and the result are compared.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.timeout(1800)
# `--multi_gpu` is what starts several processes; without a GPU they train on the CPU over gloo.
# With `--cpu` accelerate starts only one, whatever --num_processes says.
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
SMALL = {
    "dpo": ["evaluation={limit: 8, replies: 4, batch_size: 8}", "run.threads=1"],
    "grpo": ["evaluation.limit=100", "run.threads=1"],
}


def command(name: str, run: Path, processes: int, *more: str) -> list[str]:
    launcher = [*TWO, *PLAIN, "--main_process_port", "0"] if processes == 2 else []
    script = [str(ROOT / "scripts" / f"{name}.py"), "--config"]
    config = str(ROOT / "configs" / f"{name}_demo.yaml")
    return [sys.executable, *launcher, *script, config, "--output", str(run), *SMALL[name], *more]


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def train(*arguments: Any) -> str:
    process = start(*arguments)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


def metrics(run: Path) -> list[dict[str, Any]]:
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if "grad_norm" in row]


def score(run: Path, side: str, measure: str) -> float:
    value = json.loads((run / "eval" / f"{side}.json").read_text("utf-8"))[measure]["value"]
    return float(value)


def assert_one_curve(one: Path, two: Path) -> None:
    for single, double in zip(metrics(one), metrics(two), strict=True):
        assert single["step"] == double["step"]
        for name in ("loss", "grad_norm", "learning_rate", "rewards/margins"):
            assert double[name] == pytest.approx(single[name], abs=1e-3), (single["step"], name)


@pytest.mark.long
def test_dpo_has_the_curve_of_one_process_and_goes_on_as_the_same_run(tmp_path: Path) -> None:
    one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
    common = ("training.max_steps=12", "training.save_steps=2", "training.loss_type=[sigmoid]")
    train("dpo", one, 1, *common, "training.per_device_train_batch_size=16")
    half = (*common, "training.per_device_train_batch_size=8")
    output = train("dpo", two, 2, *half)
    assert output.count("Loading assets/demo_model") == 1  # one process speaks
    assert_one_curve(one, two)
    # A signal to the launcher stops both after the same step, with a checkpoint.
    process = start("dpo", stopped, 2, *half)
    deadline = time.monotonic() + 300
    while not (stopped / "metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert "the same command resumes" in output, errors
    (checkpoint, *_) = (stopped / "checkpoints").glob("step-*")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in checkpoint.iterdir()}
    train("dpo", stopped, 2, *half)
    assert [r["loss"] for r in metrics(stopped)] == [r["loss"] for r in metrics(two)]
    # Another number of processes would be another run.
    process = start("dpo", two, 1, *common, "training.per_device_train_batch_size=16")
    assert process.communicate(timeout=300) and process.returncode == 2


@pytest.mark.long
def test_both_demos_learn_on_two_processes(tmp_path: Path) -> None:
    dpo, grpo = tmp_path / "dpo", tmp_path / "grpo"
    train("dpo", dpo, 2, "training.per_device_train_batch_size=8")
    assert score(dpo, "before", "reward_accuracy") == 0.5
    assert score(dpo, "after", "reward_accuracy") == 1.0
    train("grpo", grpo, 2, "training.per_device_train_batch_size=64")
    assert score(grpo, "before", "strict") <= 0.1
    assert score(grpo, "after", "strict") >= 0.85
    samples = (grpo / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    steps = [json.loads(line)["step"] for line in samples]
    assert sorted(set(steps)) == list(range(1, 41)) and len(steps) == 40 * 4
