"""A model of the real shape, and the sides of the benchmark as subjects of tests."""

from pathlib import Path
from typing import Any

from bench.gpu import Job, data_overrides, make_model, run_job
from tests.helpers import SHARED
from tests.pretend_gpu import installed

SMALL_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def real_model(folder: Path) -> Path:
    """Random weights at the exact shape of Qwen2.5-0.5B; made in a process of its own. On the
    pretended card, which is a CPU, of a small shape."""
    return make_model(folder, SHARED / "qwen2.5-tokenizer", **(SMALL_SHAPE if installed() else {}))


def real_data(task: str, model: Path) -> list[str]:
    """Overrides that put the public test data and this model into a config of configs/."""
    return data_overrides(task, "gpu", SHARED, model)


def run_side(folder: Path, **spec: Any) -> dict[str, Any]:
    """What bench/side.py measured, in a process of its own."""
    result = run_job(Job("test", spec["side"], 0, spec), folder, {}, timeout=900)
    assert result["status"] == "ok", "\n".join(result.get("log_tail", result.get("log", [])))
    return result
