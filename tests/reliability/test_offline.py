"""Both demos without a network: what they leave on the disk where there are secrets about, and a
run whose newest checkpoint was swapped for a poisoned one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_script
from tests.reliability.conftest import FEW, SECRETS, Sealed
from tests.unit.test_trust import Payload, poison

Run = Callable[..., Sealed]
# The plain DPO run, and GRPO with W&B's own files beside ours.
RUNS = [("dpo", ()), ("grpo", ("tracking.report_to=[wandb]",))]
RECORD = [
    *("config.yaml", "environment.json", "metrics.jsonl"),
    *(f"eval/{name}.json" for name in ("before", "after", "comparison")),
    *(f"eval/{side}.jsonl" for side in ("before", "after")),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("adapter/tokenizer.json", "checkpoints/step-000002/manifest.json"),
]
BEST_BY = {"dpo": "rewards/accuracies", "grpo": "reward"}
MORE = {"dpo": ["data/report.json"], "grpo": ["samples.jsonl"]}


@pytest.mark.parametrize(("script", "overrides"), RUNS, ids=["dpo", "grpo-wandb"])
def test_behind_closed_sockets(sealed: Run, script: str, overrides: tuple[str, ...]) -> None:
    """The whole record is there, and nobody even tried: so nothing waited for an answer either."""
    run = sealed(script, *overrides)
    assert run.result.returncode == 0, run.result.stderr
    for name in (*RECORD, *MORE[script]):
        assert (run.run / name).stat().st_size > 0, name
    lines = (run.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for line in lines if "loss" in (row := json.loads(line))]
    assert [row["step"] for row in steps] == [1, 2]
    for step, row in zip((1, 2), steps, strict=False):
        path = run.run / "checkpoints" / f"step-{step:06d}" / "manifest.json"
        score = json.loads(path.read_text())["score"]
        assert score == {"metric": BEST_BY[script], "value": row[BEST_BY[script]], "logged": 1}
    assert not run.tried.exists(), run.tried.read_text()


def assert_no_secret(run: Sealed) -> None:
    written = run.written()
    assert len(written) > 10
    actual = [
        (name, variable)
        for name, content in written.items()
        for variable, value in SECRETS.items()
        if value.encode() in content
    ]
    assert actual == []


@pytest.mark.parametrize(("script", "overrides"), RUNS, ids=["dpo", "grpo-wandb"])
def test_no_secret_is_written(sealed: Run, script: str, overrides: tuple[str, ...]) -> None:
    run = sealed(script, *overrides)
    assert_no_secret(run)
    if overrides:
        assert any(path.name.endswith(".wandb") for path in run.home.rglob("*"))


@pytest.mark.long
def test_no_secret_is_in_a_traceback(sealed: Run, tmp_path: Path) -> None:
    """A reward that fails in the second step: the process dies with all that Python has to say."""
    (tmp_path / "failing.py").write_text(
        "def reward(completions, answer, **columns):\n"
        "    if columns['trainer_state'].global_step == 1:\n"
        "        raise RuntimeError('the reward gave up')\n"
        "    return [0.0] * len(completions)\n"
    )
    rewards = f"rewards={{'{tmp_path}/failing.py:reward': 1.0}}"
    run = sealed("grpo", rewards, "tracking.report_to=[wandb]")
    assert run.result.returncode == 1
    assert "Traceback" in run.result.stderr and "the reward gave up" in run.result.stderr
    assert_no_secret(run)


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
def test_a_poisoned_checkpoint(sealed: Run, tmp_path: Path, name: str) -> None:
    """Exit 2, and nothing of it ran."""
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
