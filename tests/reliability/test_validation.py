"""Validation while training: the best adapter is kept, whatever happens after it or to the run."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from posttrain.train.validation import Validation
from scripts import grpo
from tests.reliability.inside import adapter, collapse, leave_with, read, rows, succeed

LONG = pytest.mark.long
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, while trainers are built
# 24 steps of 64 completions, validated every sixth on 60 problems of the training data.
LEARNING = (
    *("training.max_steps=24", "training.save_steps=6", "training.per_device_train_batch_size=64"),
    *("training.max_completion_length=80", "data.validation=60", "health.patience=24"),
    "evaluation={limit: 40, max_new_tokens: 80, batch_size: 60, every: 6}",
)
FEW = (
    *("training.max_steps=6", "training.save_steps=1", "data.validation=8"),
    "evaluation={limit: 4, max_new_tokens: 8, every: 2}",
)
STILL = (*FEW, "run.patience=1", "training.learning_rate=1e-12", "health.max_still_steps=9")


def validations(run: Path) -> dict[int, float]:
    """Strict accuracy by step."""
    path = run / "eval" / "validation.jsonl"
    actual = rows(path) if path.exists() else []
    return {row["step"]: row["measures"]["strict"]["value"] for row in actual}


def environment(run: Path) -> Any:
    return read(run / "environment.json")


@LONG
def test_a_run_that_collapses_ends_with_its_best_adapter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After half of its steps the learning rate is 100 times too high."""
    run = tmp_path / "run"
    with collapse(grpo, 12):
        assert leave_with("grpo", run, *LEARNING) == 0
    actual = validations(run)
    assert list(actual) == [0, 6, 12, 18, 24]
    assert actual[0] < actual[6] < actual[12] and actual[12] > 0.6
    assert actual[24] < 0.2 and actual[18] < actual[12]
    kept = environment(run)["kept"]
    assert kept == {"step": 12, "by": "strict", "value": actual[12], "validations": 5}
    output = capfd.readouterr().out
    assert "Kept the adapter of step 12, the best of 5 validations: strict accuracy" in output
    after = read(run / "eval" / "after.json")
    assert after["strict"]["value"] > 0.6
    page, card = ((run / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "of step 12" in page and "best of 5 validations" in page
    assert "of step 12, by 5 validations on 60 rows of the training data" in card
    assert (run / "plots" / "validation.png").stat().st_size > 0

    # The test set's figures are those of the adapter that was kept.
    data = ("--data", "assets/demo_data/problems_test.jsonl", "--limit", "40")
    requested = ("--model", run, *data, "--max-new-tokens", "80", "--output", tmp_path / "scored")
    succeed("evaluate", *requested)
    report = read(tmp_path / "scored" / "report.json")
    assert {name: report["measures"][name] for name in after} == after


def test_patience_ends_a_run_that_does_not_improve_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was killed after it: no more is trained."""
    run = tmp_path / "run"
    score = grpo.scoring.score

    def die_after(*given: Any) -> Any:
        if given[5] == "after":
            raise KeyboardInterrupt
        return score(*given)

    with monkeypatch.context() as patched:
        patched.setattr(grpo.scoring, "score", die_after)
        assert leave_with("grpo", run, *STILL) == 130
    assert not (run / "eval" / "comparison.json").exists()
    assert leave_with("grpo", run, *STILL) == 0
    trained = environment(run)["trained"]
    assert trained["steps"] == 2
    assert trained["reason"] == "validations without a better one: 1"
    assert list(validations(run)) == [0, 2]
    assert (run / "eval" / "comparison.json").exists()
    assert (run / "checkpoints" / "step-000002").exists()


@pytest.mark.parametrize("moment", [pytest.param(0, marks=LONG), 2, pytest.param(6, marks=LONG)])
def test_a_signal_in_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """It ends at once with a checkpoint of its step; the run then validates that step first."""
    complete, run = tmp_path / "complete", tmp_path / "run"
    assert leave_with("grpo", complete, *FEW) == 0
    take = Validation.take

    def interrupted(self: Validation, step: int) -> Any:
        if step == moment:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was not heard")
        return take(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "take", interrupted)
        assert leave_with("grpo", run, *FEW) == 143
    assert max(validations(run), default=-1) < moment
    assert leave_with("grpo", run, *FEW) == 0
    for name in ("validation.jsonl", "comparison.json"):
        assert (run / "eval" / name).read_bytes() == (complete / "eval" / name).read_bytes()
    assert environment(run)["kept"] == environment(complete)["kept"]
    mine, theirs = adapter(run), adapter(complete)
    assert all(bool((mine[name] == theirs[name]).all()) for name in theirs)
    # Every validation is logged once, for the trackers too.
    logged = [row["step"] for row in rows(run / "metrics.jsonl") if "validation/strict" in row]
    assert logged == [0, 2, 4, 6]


def test_the_last_adapter_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert leave_with("grpo", run, *FEW, "run.keep=last") == 0
    assert environment(run)["kept"]["step"] == 6


def test_a_damaged_best_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not scored and exported as if nothing were wrong."""
    run = tmp_path / "run"
    keep_best = Validation.keep_best

    def damage(self: Validation, step: int) -> Any:
        self._folder.checkpoints.values = {2: 1.0, 4: 0.0, 6: 0.0}
        (run / "checkpoints" / "step-000002" / "adapter_model.safetensors").write_bytes(b"")
        return keep_best(self, step)

    monkeypatch.setattr(Validation, "keep_best", damage)
    keep = ("training.save_total_limit=9",)
    assert leave_with("grpo", run, *FEW, *keep) == 2
    assert not (run / "adapter").exists()
