"""The doctor's estimate against peaks that were measured (bench/memory.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import memory
from posttrain.model import estimate
from posttrain.model.shape import shape_of
from tests.helpers import CONFIGS, ROOT, needs_shared, settings_of

ROWS: list[dict[str, Any]] = json.loads(memory.RESULT.read_text(encoding="utf-8"))["points"]
CARDS = [path for path in CONFIGS if not path.stem.endswith(("demo", "cpu"))]


def test_every_point_was_measured() -> None:
    assert [row["name"] for row in ROWS] == [point.name for point in memory.POINTS]
    for script in ("dpo", "grpo"):
        points = [point for point in memory.POINTS if point.task == script]
        assert len({p.length for p in points}) == len({p.batch for p in points}) == 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_every_phase_is_within_a_quarter(row: dict[str, Any]) -> None:
    (point,) = (point for point in memory.POINTS if point.name == row["name"])
    for phase, size in memory.estimated(point).items():
        assert size == pytest.approx(row["measured_gb"][phase], rel=0.25), phase


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_head_of_a_config_has_its_estimate(path: Path) -> None:
    settings = settings_of(path.stem)
    shape = shape_of(settings.model.name)
    assert shape is not None
    terms = estimate.estimate(settings, shape)
    assert all(size >= 0 for size in terms.values())
    assert terms["peak"] < settings.model.min_gpu_memory_gb == 14
    header = path.read_text(encoding="utf-8").partition("\nmethod:")[0]
    assert f"# Peak memory: {terms['peak']:.1f} GB estimated (./run doctor), not measured" in header


@needs_shared
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_point_measured_again(tmp_path: Path) -> None:
    """The same process gives the same peaks to a few percent; only memory is compared."""
    (known,) = (row for row in ROWS if row["name"] == "dpo_256_1")
    output = tmp_path / "memory.json"
    command = [sys.executable, memory.__file__, "--only", known["name"], "--output", output]
    subprocess.run(command, check=True, cwd=ROOT)
    (row,) = json.loads(output.read_text(encoding="utf-8"))["points"]
    for phase, size in known["measured_gb"].items():
        assert row["measured_gb"][phase] == pytest.approx(size, rel=0.1), phase
