"""Validation while training: the best adapter is kept, whatever happens after it or to the run."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from posttrain.train.validation import Validation
from scripts import grpo
from tests.helpers import Capsys, read, rows, write_rows
from tests.reliability.inside import adapter, leave_unreported, leave_with

LONG = pytest.mark.long
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, while trainers are built
FEW = (
    *("training.max_steps=6", "training.save_steps=2", "training.save_total_limit=9"),
    *("data.validation=8", "data.train.limit=100"),
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
        assert leave_unreported("grpo", run, *STILL) == 130
    assert not (run / "eval" / "comparison.json").exists()
    assert leave_unreported("grpo", run, *STILL) == 0
    trained = environment(run)["trained"]
    assert trained["steps"] == 2
    assert trained["reason"] == "validations without a better one: 1"
    assert list(validations(run)) == [0, 2]
    assert (run / "eval" / "comparison.json").exists()
    assert (run / "checkpoints" / "step-000002").exists()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("complete") / "run"
    assert leave_unreported("grpo", run, *FEW) == 0
    return run


@pytest.mark.parametrize("moment", [pytest.param(0, marks=LONG), 2, pytest.param(6, marks=LONG)])
def test_a_signal_in_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete: Path, moment: int
) -> None:
    """It ends at once with a checkpoint of its step; the run then validates that step first."""
    run = tmp_path / "run"
    take = Validation.take

    def interrupted(self: Validation, step: int) -> Any:
        if step == moment:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was not heard")
        return take(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "take", interrupted)
        assert leave_unreported("grpo", run, *FEW) == 143
    assert max(validations(run), default=-1) < moment
    assert leave_unreported("grpo", run, *FEW) == 0
    for name in ("validation.jsonl", "comparison.json"):
        assert (run / "eval" / name).read_bytes() == (complete / "eval" / name).read_bytes()
    assert environment(run)["kept"] == environment(complete)["kept"]
    mine, theirs = adapter(run), adapter(complete)
    assert all(bool((mine[name] == theirs[name]).all()) for name in theirs)
    for name in ("loss", "validation/strict"):  # each is logged once, for the trackers too
        mine, theirs = (
            [row["step"] for row in rows(each / "metrics.jsonl") if name in row]
            for each in (run, complete)
        )
        assert mine == theirs, name
    times = [row["seconds"] for row in rows(run / "metrics.jsonl")]
    assert times == sorted(times)  # over both sessions


def before_the_end(complete: Path, run: Path, values: dict[int, float]) -> Path:
    """A copy of the run as a kill after its last step leaves it, with the strict accuracies of
    these steps, and 0 of others."""
    shutil.copytree(complete, run)
    shutil.rmtree(run / "adapter")
    (run / "eval" / "comparison.json").unlink()
    taken = rows(run / "eval" / "validation.jsonl")
    for row in taken:
        row["measures"]["strict"]["value"] = values.get(row["step"], 0.0)
    write_rows(run / "eval" / "validation.jsonl", *taken)
    return run


def test_the_adapter_that_is_kept(complete: Path, tmp_path: Path, capsys: Capsys) -> None:
    """The best by validation, as output, page and card show; the last with run.keep=last."""
    best, last = (before_the_end(complete, tmp_path / name, {4: 1.0}) for name in ("best", "last"))
    assert leave_with("grpo", best, *FEW) == 0
    expected = {"step": 4, "by": "strict", "value": 1.0, "validations": 4}
    assert environment(best)["kept"] == {**expected, "best": True, "before": None}
    weights = "adapter_model.safetensors"
    kept, saved = best / "adapter" / weights, best / "checkpoints" / "step-000004" / weights
    assert kept.read_bytes() == saved.read_bytes()
    printed = capsys.readouterr().out
    assert "Kept the adapter of step 4, the best of 4 validations: strict acc" in printed
    page, card = ((best / name).read_text("utf-8") for name in ("report.html", "README.md"))
    assert "of step 4" in page and "best of 4 validations" in page
    assert "of step 4, by 4 validations on 8 rows of the training data" in card
    assert (best / "plots" / "validation.png").stat().st_size > 0

    assert leave_unreported("grpo", last, *FEW, "run.keep=last") == 0
    kept_last = environment(last)["kept"]
    assert kept_last["step"] == 6 and not kept_last["best"]

    worse = before_the_end(complete, tmp_path / "worse", {0: 0.5, 4: 0.25})
    capsys.readouterr()
    assert leave_unreported("grpo", worse, *FEW) == 0
    assert environment(worse)["kept"] == {**expected, "value": 0.25, "best": True, "before": 0.5}
    assert "warning: before training the same rows had strict acc" in capsys.readouterr().out


def test_a_damaged_best_checkpoint_is_refused(
    complete: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """Not scored and exported as if nothing were wrong."""
    run = before_the_end(complete, tmp_path / "run", {4: 1.0})
    (run / "checkpoints" / "step-000004" / "adapter_model.safetensors").write_bytes(b"")
    assert leave_unreported("grpo", run, *FEW) == 2
    assert "the best by validation, is damaged" in capsys.readouterr().err
    assert not (run / "adapter").exists()
