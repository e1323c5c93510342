"""Benchmarks that a machine without a GPU can run, in their smallest form, as a user would.

bench/gpu.py runs in tests/pretend_gpu and tests/gpu.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, SHARED, needs_shared, read

pytestmark = pytest.mark.long  # benchmarks are tools of ours, and no command runs one


def bench(name: str, output: Path, *arguments: str | Path) -> Any:
    """The JSON that bench/NAME.py writes."""
    script = ROOT / "bench" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, script, "--output", output, *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return read(output)


@pytest.mark.timeout(1200)
def test_what_our_code_adds_to_a_step(tmp_path: Path) -> None:
    actual = bench("step_overhead", tmp_path / "overhead.json", "--rounds", "1", "--task", "dpo")
    for more, less in (("project", "bare"), ("tracked", "project")):
        added = actual["dpo"][f"{more}_over_{less}"]["timed_inside_the_step"]
        assert added["share"] > 0, added


def test_start_up_by_stage(tmp_path: Path) -> None:
    actual = bench("startup", tmp_path / "startup.json", "--repetitions", "1")
    stages = actual["configs/dpo_demo.yaml"]
    assert stages["load model"]["clock"] > 0 and stages["first step"]["clock"] > 0


@needs_shared
@pytest.mark.timeout(1200)
def test_what_rounding_takes_back(tmp_path: Path) -> None:
    options = ("--tokenizer", SHARED / "qwen2.5-tokenizer", "--spread", "1e-3")
    (row,) = bench("rounding", tmp_path / "rounding.json", *options)["adapters"]
    assert row["float32"]["largest_logit_difference"] < 1e-5
    assert row["float16"]["largest_logit_difference"] < 1e-2
    assert row["float16"]["lost"] < row["bfloat16"]["lost"] / 3
