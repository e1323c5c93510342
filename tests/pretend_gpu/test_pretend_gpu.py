"""Starts the tests that belong on the pretended card, each file in a process that has it.

inside/ holds tests of the card alone; the others are the project's own tests, which pass there as
they do without a GPU.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import ROOT, WARM, demo_command, read
from tests.pretend_gpu import OUTSIDE, environment, hooks

INSIDE = "tests/pretend_gpu/inside"
QUICK = "not long"
long = pytest.mark.long


def on_card(*arguments: str, capability: str = "8.0") -> str:
    """Run Python on the card; returns what it said.

    By default, generated trainers are kept apart for each worker, which would otherwise
    write the same files at once.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    own = environment(capability)
    own["UNSLOTH_COMPILE_LOCATION"] += worker
    own.pop("PYTEST_CURRENT_TEST", None)
    WARM.start()
    own[OUTSIDE] = str(WARM.path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def run_tests(*targets: str, marks: str = "", capability: str = "8.0") -> None:
    """Run tests on the card: all of them pass, and none is skipped."""
    chosen = ("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "-m", marks)
    printed = on_card("-m", "pytest", *chosen, *targets, capability=capability)
    assert re.search(r"^\d+ passed( |,)(?!.*skipped)", printed, re.MULTILINE), printed[-3000:]


@pytest.mark.timeout(1800)
def test_quick() -> None:
    """In one process: to import Unsloth takes as long as several of them."""
    files = (f"{INSIDE}/test_{name}.py" for name in ("trainers", "numbers", "rollouts"))
    run_tests(*files, marks=QUICK)


@long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "target",
    [
        f"{INSIDE}/test_trainers.py",
        f"{INSIDE}/test_numbers.py",
        f"{INSIDE}/test_commands.py",
        f"{INSIDE}/test_configs.py",
        "tests/reliability/test_health.py",
        "tests/reliability/test_signals.py",
        "tests/reliability/test_validation.py",
        "tests/reliability/test_interruptions.py",
        "tests/e2e/test_demos.py",
        # Not test_learning.py, which pre-trains a model for minutes of a GPU's time, nor
        # test_scripts.py, whose configs inside/test_configs.py tries on a small model, nor
        # test_trainers.py: inside/test_numbers.py compares, without the logits of 151,936 tokens.
        # test_interruptions.py above has what test_resume.py has.
        "tests/gpu/test_generation.py",
    ],
)
def test_whole(target: str) -> None:
    """Of the project's own files what is not long, which has the same cause to fail here."""
    run_tests(target, marks="long" if target.startswith(INSIDE) else QUICK)


@long
@pytest.mark.timeout(3600)
def test_on_a_t4() -> None:
    """Compute capability 7.5: float16 with a loss scaler, no bfloat16."""
    for name in ("trainers", "configs"):
        run_tests(f"{INSIDE}/test_{name}.py", capability="7.5")


@long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", ["grpo", "dpo", "sft"])
def test_with_two_cards_a_run_takes_one(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trl refuses to train where transformers would use two; Unsloth tells it to use one."""
    monkeypatch.setenv("PRETEND_GPU_CARDS", "2")
    count = "import torch; print(torch.cuda.device_count(), 'cards')"
    assert "2 cards" in on_card("-c", count)
    few = ["training.max_steps=1", "data.validation=0", "evaluation.limit=4"]
    on_card(f"scripts/{script}.py", *demo_command(script, tmp_path / "run", *few))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@long
@pytest.mark.timeout(3600)
def test_benchmark_from_start_to_json(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    steps = ["--size", "cpu", "--steps", "1", "--warmup", "0", "--work", str(tmp_path / "work")]
    printed = on_card("bench/gpu.py", *steps, "--output", str(output))
    result = read(output)
    assert result["device"] == "Pretended card 8.0" and result["pretended"] is True
    assert [m["status"] for m in result["measurements"]] == ["ok"] * 6, printed[-3000:]
    for task in ("dpo", "grpo"):
        sides = result["summary"]["compare"]
        assert sides[f"{task}: project"]["seconds_a_step"] > 0
    kinds = {m["name"]: m["trainer"] for m in result["measurements"]}
    assert "UnslothGRPOTrainer" in kinds["grpo: project"]
    assert "UnslothDPOTrainer" in kinds["dpo: project"]
    assert "Unsloth" not in kinds["grpo: stock"] + kinds["dpo: stock"]


def test_pins_are_of_the_locked_versions() -> None:
    pinned = read(hooks.PINS)["versions"]
    assert pinned == {name: version(name) for name in pinned}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name, number in pinned.items():
        assert f"\n{name.replace('_', '-')}=={number} " in lock


def test_a_name_that_moved_or_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("library")
    exec("def kernel(x):\n    return x\n", module.__dict__)
    pins = tmp_path / "pins.json"
    monkeypatch.setattr(hooks, "PINS", pins)
    monkeypatch.setattr(hooks, "replaced", {})
    for sources in ({}, {"library.kernel": "another source"}):
        pins.write_text(json.dumps({"sources": sources}))
        with pytest.raises(hooks.Moved, match=r"library\.kernel is not the one .* --pin"):
            hooks.put(module, "kernel", None)
    assert module.kernel(1) == 1
    with pytest.raises(hooks.Moved, match=r"library\.other is gone"):
        hooks.put(module, "other", None)
    pins.write_text(json.dumps({"sources": {"library.kernel": None}}))  # written in C, as it were
    hooks.put(module, "kernel", "replacement")
    assert module.kernel == "replacement"
