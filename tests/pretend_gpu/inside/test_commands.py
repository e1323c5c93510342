"""What comes after training: evaluating an adapter and exporting it."""

from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.reliability.inside import leave_with, read, succeed

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]
PROBLEMS = ROOT / "assets" / "demo_data" / "problems_test.jsonl"


def test_evaluate_and_export(tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    assert leave_with("grpo", run) == 0
    adapter = str(run / "adapter")
    succeed(
        "evaluate",
        *("--model", adapter, "--data", PROBLEMS, "--limit", "16"),
        "--output",
        tmp_path / "e",
    )
    report = read(tmp_path / "e" / "report.json")
    assert report["measures"]["strict"]["n"] == 16
    succeed("export", str(run), "--to", "merged_16bit")
    assert (run / "merged_16bit" / "model.safetensors").stat().st_size > 0
