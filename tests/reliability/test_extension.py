"""A finished run of which more steps are wanted: the same command with a larger length. And one
that was killed before its report: the same command makes it."""

from pathlib import Path

import pytest

from posttrain.model.provenance import read_record
from tests.helpers import Capsys, read
from tests.reliability.inside import leave_unreported, leave_with, steps

SHORT = ("training.per_device_train_batch_size=34",)  # 3 steps an epoch


@pytest.mark.parametrize(
    ("short", "longer"),
    [
        (["training.max_steps=2"], ["training.max_steps=4"]),
        pytest.param(
            ["training.max_steps=-1", "training.num_train_epochs=1"],
            ["training.max_steps=-1", "training.num_train_epochs=2"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_finished_run_trains_on_to_a_greater_length(
    tmp_path: Path, capsys: Capsys, short: list[str], longer: list[str]
) -> None:
    import torch

    run = tmp_path / "run"
    assert leave_unreported("dpo", run, *SHORT, *short) == 0
    before = (run / "eval" / "before.jsonl").read_bytes()
    first = steps(run)
    length = 2 * len(first)
    capsys.readouterr()
    assert leave_unreported("dpo", run, *SHORT, *longer, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "that command will be refused" in shown
    assert leave_unreported("dpo", run, *SHORT, *longer) == 2
    refused = capsys.readouterr().err
    for text in (shown, refused):
        assert "--resume-anyway to train on to the new length" in text
    torch.set_num_threads(2)
    anyway = ("--resume-anyway", "run.threads=null")
    assert leave_unreported("dpo", run, *SHORT, *longer, *anyway) == 0
    printed = capsys.readouterr().out
    assert "the scores from before training are kept" in printed
    assert "follows the linear schedule of the new settings" in printed
    assert (run / "eval" / "before.jsonl").read_bytes() == before
    metrics = steps(run)
    assert [row["step"] for row in metrics] == list(range(1, length + 1))
    assert metrics[: len(first)] == first
    # The linear schedule of the new length, at once.
    rates = [row["learning_rate"] for row in metrics[len(first) :]]
    expected = [5e-4 * (1 - step / length) for step in range(len(first), length)]
    assert rates == pytest.approx(expected)
    environment = read(run / "environment.json")
    assert environment["trained"]["steps"] == length
    assert environment["threads"] == 1  # those of the first start, on which sums depend
    assert not (run / "report.html").exists()
    assert leave_with("dpo", run, *SHORT, *longer) == 0
    assert "is a finished run" in capsys.readouterr().out
    assert (run / "report.html").exists() and (run / "README.md").exists()
    assert len(steps(run)) == length
    if length != 4:
        return
    # And back to the step before, after which nothing is left to train.
    step = run / "checkpoints" / "step-000002"
    back = ("--resume", str(step), "--resume-anyway")
    record = read_record(run)
    assert leave_unreported("dpo", run, *SHORT, *short, *back, "data.train.limit=280") == 0
    assert record and read_record(run) == record  # of the rows that it learned from before, too
    assert "Training was already done at step 2" in capsys.readouterr().out
    assert {path.name for path in step.parent.glob("step-*")} == {step.name, "step-000004.later"}
    assert steps(run) == first
