"""A run with a W&B key and no network is complete, is resumed as the same W&B run, and keeps the
key to itself."""

import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import start_script
from tests.reliability.inside import rows, succeed
from tests.reliability.test_interruptions import arguments, wait_for
from tests.wandb_files import read_offline_run

KEY = "sentinel" + "0123456789abcdef" * 2
WITHOUT_NETWORK = {
    "WANDB_MODE": "online",
    "WANDB_API_KEY": KEY,
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_INIT_TIMEOUT": "2",
}


def stop_after_a_step(command: list[Any], run: Path) -> tuple[int, str, str]:
    """Start a script, send it SIGTERM once it has trained a step; its exit code and output."""
    process = start_script(*command, **WITHOUT_NETWORK)
    wait_for(process, (run / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    return process.wait(), output, errors


@pytest.mark.long  # tests/unit/test_tracking_choice.py has a server that is not there, in seconds
@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_key_without_network(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    own = ["tracking.report_to=[tensorboard]", "training.max_steps=4"]
    command = [name, *arguments(name, run, *own)]
    code, *stopped = stop_after_a_step(command, run)
    assert code == 143, stopped
    finished = succeed(*command, **WITHOUT_NETWORK)
    for out, err in (stopped, (finished.stdout, finished.stderr)):
        assert out.count("W&B") == 1
        assert "W&B: no run on the server (" in out and "so its files stay here" in out
        assert "wandb" not in err

    steps = rows(run / "metrics.jsonl")
    parts = [read_offline_run(p) for p in sorted((run / "wandb").glob("offline-run-*"))]
    assert [part.exit_code for part in parts] == [143, 0]
    assert len({part.id for part in parts}) == 1
    logged: dict[int, dict[str, Any]] = {}
    for row in (row for part in parts for row in part.history):
        logged.setdefault(row["_step"], {}).update(row)
    wanted: dict[int, dict[str, Any]] = {}
    for row in steps:  # the last step has two: its own, and the one of the whole training
        wanted.setdefault(row["step"], {}).update(row)
    for step, row in wanted.items():
        for metric in row.keys() - {"step", "seconds"}:  # W&B has a clock of its own
            if row[metric] is not None:
                assert logged[step][metric] == pytest.approx(row[metric]), (step, metric)
    complete = parts[1]
    assert complete.config["training"]["save_steps"] == 2
    assert complete.config["environment"]["device"] == "CPU"
    kinds = {a.type for a in complete.artifacts.values()}
    assert {"model", "report", "run_table"} <= kinds
    (report,) = (a for a in complete.artifacts.values() if a.type == "report")
    has_data = "data/report.json" in {entry.path for entry in report.manifest.contents}
    assert has_data == (name == "dpo")
    tables = {key for row in complete.history for key in row if key.startswith("tables/")}
    samples = "samples" if name == "grpo" else "eval/after_replies"
    assert f"tables/{samples}/nrows" in tables
    measure = "strict" if name == "grpo" else "reward_accuracy"
    for side in ("before", "after"):
        assert complete.summary[f"eval/{side}/{measure}/n"] == 8

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {event.step for event in board.Scalars("train/grad_norm")} == {1, 2, 3, 4}
    for path in run.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
