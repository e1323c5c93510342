"""Unsloth's trainers are the ones that train, and compute what stock trl computes."""

import math
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import make_model
from tests.gpu.helpers import SMALL_SHAPE, real_data, real_model, run_side
from tests.helpers import SHARED, needs_shared
from tests.pretend_gpu import installed

TASKS = ["dpo", "grpo"]
CONFIG = {"dpo": "configs/dpo_french_16gb.yaml", "grpo": "configs/grpo_gsm8k_16gb.yaml"}
SMALL = {
    "dpo": [
        "training.per_device_train_batch_size=4",
        "training.gradient_accumulation_steps=1",
        "training.train_sampling_strategy=sequential",  # trl cannot group pairs by length
    ],
    "grpo": [
        "training.per_device_train_batch_size=16",
        "training.gradient_accumulation_steps=1",
        "training.max_completion_length=128",
    ],
}
# What is compared of each of three steps, and how far it may be apart, of the larger value:
# sums and norms over the same tokens, with the rounding of 16-bit matrix products in between.
COMPARED = {
    "dpo": ("loss", "grad_norm", "logps/chosen", "logps/rejected"),
    "grpo": ("loss", "grad_norm"),
}
BAND = {
    "loss": 0.2,  # a tenth of a difference of sums over hundreds of tokens, through a logarithm
    "grad_norm": 0.15,
    "logps/chosen": 0.005,
    "logps/rejected": 0.005,
}
STEPS = 3


def both_sides(folder: Path, task: str, overrides: list[str]) -> tuple[Any, Any]:
    """The project's side and stock trl's on the same batches, from the same random adapter."""
    same = {
        "task": task,
        "config": CONFIG[task],
        "overrides": [*overrides, *SMALL[task]],
        "adapter_seed": 1,
        "lengths": "fixed",
        "warmup": 1,
        "cycles": STEPS - 1,
    }
    return (
        run_side(folder / "project", side="project", **same),
        run_side(folder / "stock", side="stock", **same),
    )


def assert_near(project: Any, stock: Any, task: str) -> None:
    for own, other in zip(project["log"], stock["log"], strict=True):
        for name in COMPARED[task]:
            assert math.isfinite(own[name])
            apart = abs(own[name] - other[name]) / max(abs(own[name]), abs(other[name]), 0.1)
            assert apart <= BAND[name], f"step {own['step']}: {name} {own[name]} {other[name]}"
    first = project["log"][0]
    if task == "dpo":  # the adapter is not the one that does nothing, and is compared as such
        assert abs(first["loss"] - math.log(2)) > 0.02
    assert first["grad_norm"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
def test_trainers_are_unsloths(task: str, tmp_path: Path) -> None:
    demo = {"task": task, "config": f"configs/{task}_demo.yaml", "warmup": 0, "cycles": 1}
    demo["overrides"] = ["model.dtype=bfloat16", "training.bf16=true"]
    project = run_side(tmp_path / "project", side="project", **demo)
    stock = run_side(tmp_path / "stock", side="stock", **demo)
    assert f"Unsloth{task.upper()}Trainer" in project["trainer"]
    assert stock["trainer"] == [f"{task.upper()}Trainer"]
    assert (project["unsloth_imported"], stock["unsloth_imported"]) == (True, False)


@needs_shared
@pytest.mark.gpu
@pytest.mark.parametrize("four_bit", [True, False], ids=["4bit", "16bit"])
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_stock_trl(task: str, four_bit: bool, tmp_path: Path) -> None:
    model = real_model(tmp_path)
    precision = f"model.load_in_4bit={str(four_bit).lower()}"
    project, stock = both_sides(tmp_path, task, [*real_data(task, model), precision])
    assert project["adapter_parameters"] == stock["adapter_parameters"]
    assert_near(project, stock, task)


@needs_shared
@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_comparison_holds_without_a_gpu(task: str, tmp_path: Path) -> None:
    """The same comparison of a small model in float32, where both sides must be nearly equal."""
    model = make_model(tmp_path, SHARED / "qwen2.5-tokenizer", **SMALL_SHAPE)
    exact = ["model.load_in_4bit=false", "model.dtype=float32", "training.bf16=false"]
    exact += ["training.optim=adamw_torch", "training.gradient_checkpointing=false"]
    project, stock = both_sides(tmp_path, task, [*real_data(task, model), *exact])
    assert (f"Unsloth{task.upper()}Trainer" in project["trainer"]) == installed()
    for own, other in zip(project["log"], stock["log"], strict=True):
        for name in COMPARED[task]:
            assert own[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (own["step"], name)
    assert project["log"][0]["grad_norm"] > 0
