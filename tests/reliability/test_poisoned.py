"""A run whose newest checkpoint was swapped for a poisoned one: exit 2, and nothing of it ran."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_script
from tests.reliability.conftest import FEW, Sealed
from tests.unit.test_trust import Payload, poison


def test_the_trainer_loads_everything_with_weights_only() -> None:
    """What check_checkpoint proves is what the installed transformers then does."""
    import ast

    import transformers

    path = Path(transformers.__file__).parent / "trainer.py"
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) >= 5
    for call in calls:
        output = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert output.get("weights_only") == "True", f"line {call.lineno}"


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("rng_state.pth", "training_args.bin")),
    ],
)
def test_a_poisoned_checkpoint(sealed: Callable[..., Sealed], tmp_path: Path, name: str) -> None:
    import torch

    run, marker = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(sealed("dpo").run, run)
    (run / "eval" / "comparison.json").unlink()  # as if it had been stopped
    checkpoint = run / "checkpoints" / "step-000002"
    earlier = json.loads((checkpoint / "manifest.json").read_text())["facts"]
    torch.save({"state": Payload(marker)}, tmp_path / "payload")
    poison(checkpoint, name, (tmp_path / "payload").read_bytes(), step=2, facts=earlier)
    result = run_script(
        *("dpo", "--config", ROOT / "configs" / "dpo_demo.yaml", "--output", run),
        *("training.max_steps=2", "training.save_steps=1", "run.threads=1", *FEW["dpo"]),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"step-000002/{name}: refused" in result.stderr
    assert "Traceback" not in result.stderr
    assert not marker.exists()
