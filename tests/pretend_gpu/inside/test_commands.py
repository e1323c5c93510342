"""What comes after training: evaluating an adapter and exporting it."""

import json
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_script
from tests.reliability.inside import leave_with

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]
PROBLEMS = ROOT / "assets" / "demo_data" / "problems_test.jsonl"


def test_evaluate_and_export(tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    assert leave_with("grpo", run) == 0
    adapter = str(run / "adapter")
    scored = run_script(
        "evaluate",
        *("--model", adapter, "--data", PROBLEMS, "--limit", "16"),
        "--output",
        tmp_path / "e",
    )
    assert scored.returncode == 0, scored.stderr
    report = json.loads((tmp_path / "e" / "report.json").read_text(encoding="utf-8"))
    assert report["measures"]["strict"]["n"] == 16
    exported = run_script("export", str(run), "--to", "merged_16bit")
    assert exported.returncode == 0, exported.stderr
    assert (run / "merged_16bit" / "model.safetensors").stat().st_size > 0
