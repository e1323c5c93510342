"""Both demos without a network, and what they leave on the disk where there are secrets about."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.conftest import SECRETS, Sealed

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
