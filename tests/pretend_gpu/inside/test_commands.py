"""What comes after training: evaluating an adapter and exporting it."""

from pathlib import Path

import pytest

from tests.helpers import DEMO_DATA, read
from tests.reliability.inside import leave_with, succeed

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]


def test_evaluate_and_export(tmp_path: Path) -> None:
    run = tmp_path / "grpo"
    assert leave_with("grpo", run) == 0
    given = ("--data", DEMO_DATA / "problems_test.jsonl", "--limit", "16")
    succeed("evaluate", "--model", run / "adapter", *given, "--output", tmp_path / "e")
    assert read(tmp_path / "e" / "report.json")["measures"]["strict"]["n"] == 16
    succeed("export", str(run), "--to", "merged_16bit")
    assert (run / "merged_16bit" / "model.safetensors").stat().st_size > 0
