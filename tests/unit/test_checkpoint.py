"""Checkpoints are complete or absent, and a damaged one is never used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.disk import check_disk, is_disk_full
from posttrain.base.errors import CheckpointError, ConfigError
from posttrain.run import checkpoint
from posttrain.run.checkpoint import CheckpointStore, Score, check_same_run, verify
from posttrain.run.folder import RunFolder
from posttrain.train.stop import StopRequest
from tests.helpers import ROOT, Capsys, demo_settings
from tests.unit.conftest import write_file

FACTS = {
    "settings": {"training": {"seed": 42, "beta": 0.1}},
    "data": "abc",
    "weights": "def",
    "versions": {"trl": "1"},
}
FILES = {
    "adapter_model.safetensors": b"weights" * 99,
    "optimizer.pt": b"o" * 500,
    "sub/x.json": b"{}",
}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    (tmp_path / "checkpoints").mkdir()
    return CheckpointStore(tmp_path / "checkpoints")


def write(store: CheckpointStore, step: int, keep: int = 2, score: float | None = None) -> Path:
    """Publish a checkpoint of a few files, as the trainer leaves them."""
    written = store.staging / f"checkpoint-{step}"
    for name, content in {**FILES, "training_args.bin": b"pickle"}.items():
        write_file(written / name, content + str(step).encode())
    kept = None if score is None else {"metric": "reward", "value": score, "logged": 1}
    return store.publish(written, step, FACTS, keep, kept)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path != store.staging)


def test_a_published_checkpoint_verifies_and_holds_no_pickle(store: CheckpointStore) -> None:
    path = write(store, 5)
    assert path.name == "step-000005"
    assert verify(path) is None
    assert not (path / "training_args.bin").exists()
    assert json.loads((path / "manifest.json").read_text())["files"].keys() == FILES.keys()
    (path / "extra.pt").write_bytes(b"")
    assert verify(path) == "extra.pt does not belong there"
    (path / "extra.pt").unlink()
    assert verify(path.rename(path.with_name("step-000006"))) == "manifest.json is of step 5"


def test_rotation_keeps_the_newest(store: CheckpointStore) -> None:
    for step in (5, 10, 10, 15, 1000000):  # a step that is there is replaced
        write(store, step)
    assert names(store) == ["step-000015", "step-1000000"]
    assert store.newest() == store.folder / "step-1000000"


def test_rotation_keeps_the_best_besides(store: CheckpointStore) -> None:
    for step, score in ((5, 0.5), (10, 2.5), (15, 1.0), (20, 2.0), (25, None)):
        write(store, step, score=score)
    assert names(store) == ["step-000010", "step-000020", "step-000025"]
    best = store.best()
    assert best == store.folder / "step-000010" and verify(best) is None
    assert store.newest() == store.folder / "step-000025"
    write(store, 30, score=2.5)  # the newer of two equal ones
    assert store.best() == store.folder / "step-000030"
    write(store, 35, score=float(7))
    assert names(store) == ["step-000030", "step-000035"]
    assert store.best() == store.folder / "step-000035"


def test_going_back_to_a_step_sets_later_ones_aside(store: CheckpointStore, capsys: Capsys) -> None:
    for step in (5, 10, 15):
        write(store, step, keep=3, score=float(step))
    store.set_aside_after(5)
    assert "step-000010 is of a later step" in capsys.readouterr().out
    write(store, 7, keep=1, score=6.0)
    assert names(store) == ["step-000007", "step-000010.later", "step-000015.later"]
    assert store.newest() == store.best() == store.folder / "step-000007"
    store.set_aside_after(7)
    assert capsys.readouterr().out == ""


def test_a_score_is_the_mean_since_the_last_checkpoint() -> None:
    score = Score("reward")
    score.add({"reward": None})  # trl's word for a step in which nothing could be scored
    assert score.take() is None
    for logs in ({"reward": 1.0}, {"loss": 9.0}, {"reward": 2.0}, {"reward": float("nan")}):
        score.add(logs)
    assert score.take() == {"metric": "reward", "value": 1.5, "logged": 2}
    score.add({"reward": 3.0})
    assert score.take() == {"metric": "reward", "value": 3.0, "logged": 1}
    lower_is_better = Score("-loss")
    lower_is_better.add({"loss": 0.5})
    assert lower_is_better.take() == {"metric": "-loss", "value": -0.5, "logged": 1}


def test_the_old_one_stays_when_the_new_one_does_not_verify(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write(store, 5, keep=1)
    original = os.rename

    def rename_and_damage(source: Path, target: Path) -> None:
        original(source, target)
        (Path(target) / "optimizer.pt").write_bytes(b"bad disk")

    monkeypatch.setattr(checkpoint.os, "rename", rename_and_damage)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is not what was written"):
        write(store, 10, keep=1)
    assert verify(old) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("damage", [truncate, Path.unlink, flip_a_bit])
@pytest.mark.parametrize("name", ["optimizer.pt", "sub/x.json", "manifest.json"])
def test_after_damage_the_earlier_one_is_used(
    store: CheckpointStore, name: str, damage: Any, capsys: Capsys
) -> None:
    good, bad = write(store, 5), write(store, 10)
    damage(bad / name)
    assert store.newest() == good
    assert "step-000010 is damaged" in capsys.readouterr().out
    assert names(store) == ["step-000005", "step-000010.damaged"]
    damage(good / name)
    with pytest.raises(CheckpointError, match=r"all 1 checkpoints are damaged.*--resume never"):
        store.newest()


KILLED = """
import os, sys
from pathlib import Path
from tests.unit.test_checkpoint import CheckpointStore, write

left = -1

def dying(function):
    def call(*args, **kwargs):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return function(*args, **kwargs)
    return call

for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
for moment in range(12):
    folder = Path(sys.argv[1], str(moment))
    folder.mkdir()
    write(CheckpointStore(folder), 5, keep=1)
    if os.fork() == 0:
        left = moment
        write(CheckpointStore(folder), 10, keep=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) in (0, 9)
"""


def test_killed_at_any_moment_of_a_save(tmp_path: Path) -> None:
    """A process that dies at its n-th system call of a save leaves a checkpoint that verifies."""
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=True, cwd=ROOT)
    saved = [CheckpointStore(folder).newest() for folder in tmp_path.iterdir()]
    assert {path.name for path in saved if path} == {"step-000005", "step-000010"}
    assert len(saved) == 12 and all(path and verify(path) is None for path in saved)


def test_another_run_is_refused_with_every_difference(store: CheckpointStore) -> None:
    path = write(store, 5)
    check_same_run(path, FACTS)
    other = json.loads(json.dumps(FACTS))
    other["settings"]["training"]["beta"] = 0.2
    other["versions"]["trl"] = "2"
    other["weights"] = "Qwen/other@1"
    with pytest.raises(ConfigError, match="--resume-anyway") as caught:
        check_same_run(path, other)
    for change in ("settings.training.beta was 0.1, now 0.2", "versions.trl was '1', now '2'"):
        assert change in str(caught.value)
    assert "weights was 'def', now 'Qwen/other@1'" in str(caught.value)


def test_checkpoint_of_choice(tmp_path: Path, store: CheckpointStore) -> None:
    run = RunFolder(tmp_path)
    write_file(store.staging / "checkpoint-5" / "optimizer.pt", b"half")
    assert run.checkpoint("auto") is store.newest() is None
    assert [*store.folder.iterdir()] == []
    path = write(store, 5)
    assert run.checkpoint("auto") == path == run.checkpoint(str(path))
    assert run.checkpoint("never") is None
    for wrong in ("", "nothing", str(tmp_path)):
        with pytest.raises(ConfigError, match="not a complete checkpoint"):
            run.checkpoint(wrong)
    assert store.best() is None  # without a score
    for manifest in ("{", "[]", '{"score": 7}', '{"score": {"value": "x"}}'):
        (path / "manifest.json").write_text(manifest)
        assert store.best() is None


def test_disk_space(tmp_path: Path) -> None:
    check_disk(tmp_path, 1, keep=2)
    with pytest.raises(ConfigError, match=r"GB free, and the checkpoints need .* GB"):
        check_disk(tmp_path, shutil.disk_usage(tmp_path).free, keep=2)
    with pytest.raises(ConfigError, match=r"the checkpoints and exports need .* GB"):
        check_disk(tmp_path, 1, keep=2, export_bytes=2 * shutil.disk_usage(tmp_path).free)
    full = OSError(28, "No space left"), RuntimeError("IoError(Os { code: 28, kind: StorageFull })")
    others = OSError(13, "Permission denied"), RuntimeError("shape mismatch")
    assert all(is_disk_full(error, tmp_path) for error in full)
    assert not any(is_disk_full(error, tmp_path) for error in others)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(number: signal.Signals, code: int, capsys: Capsys) -> None:
    before = signal.getsignal(number)
    with StopRequest(None) as stop:
        assert not stop.wanted()
        os.kill(os.getpid(), number)
        assert stop.wanted() and stop.exit_code == code
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one ends the process
    assert signal.getsignal(number) == before
    assert number.name in capsys.readouterr().out
    with StopRequest(0.001) as stop:
        time.sleep(0.1)
        assert stop.wanted()
    assert (stop.exit_code, stop.reason) == (0, "run.max_minutes is over")


def test_safe_points() -> None:
    """With rollouts for two optimizer steps, only every second step can be saved."""
    sizes = {"gradient_accumulation_steps": 2, "steps_per_generation": 4}
    training = demo_settings("grpo").training.model_copy(update=sizes)
    assert [training.safe_to_save(step) for step in (1, 2, 3, 4)] == [False, True, False, True]


def test_a_checkpoint_of_an_earlier_version_has_settings_that_were_removed(tmp_path: Path) -> None:
    facts = {"settings": {"model": {"name": "m"}}}
    for value, changes in ((False, 0), (True, 1)):
        earlier = {"settings": {"model": {"name": "m", "decode_graphs": value}}}
        (tmp_path / "manifest.json").write_text(json.dumps({"facts": earlier}), "utf-8")
        assert len(check_same_run(tmp_path, facts, anyway=True)) == changes


def test_a_finished_run_is_left_alone_but_not_mistaken_for_another(tmp_path: Path) -> None:
    run, settings = RunFolder(tmp_path / "run"), demo_settings("dpo")
    assert not run.is_done(settings, "auto")
    run.open(fresh=False)
    run.describe(settings, {})
    assert not run.is_done(settings, "auto")
    (run.path / "eval" / "comparison.json").write_text("{}")
    assert run.is_done(settings, "auto")
    record = run.path / "config.yaml"
    earlier = record.read_text("utf-8").replace("model:\n", "model:\n  decode_graphs: false\n")
    record.write_text(earlier, "utf-8")  # a setting that an earlier version had
    assert run.is_done(settings, "auto")
    assert not run.is_done(settings, "never")
    same = ["health.every=3", "run.max_minutes=5", "tracking.samples=1", "export.to=[ollama]"]
    assert run.is_done(demo_settings("dpo", *same), "auto")
    other, longer = "training.beta=0.7", "training.max_steps=90"
    assert not run.is_done(demo_settings("dpo", other), "auto", anyway=True)
    for changed, message in (
        ([other], r"training\.beta was 0\.1, now 0\.7"),
        ([longer], "give --resume-anyway to train on to the new length"),
        ([longer, other], "give another --output"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.is_done(demo_settings("dpo", *changed), "auto")
