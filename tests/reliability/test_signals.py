"""SIGTERM at the worst moments: exit 143, nothing lost, and the same run afterwards.

The signal is real; it is sent to this process from inside the call that it is to interrupt.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.run.checkpoint import CheckpointStore, verify
from posttrain.train.stop import StopRequest
from tests.helpers import ROOT, Capsys, read, rows, run_script
from tests.reliability.inside import (
    NOW,
    OnForward,
    adapter,
    arguments,
    learning,
    leave_unreported,
    leave_with,
    steps,
)

Install = Callable[..., None]
Complete = dict[str, Path]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, while trainers are built


class Sender:
    """Sends one SIGTERM, and counts what still runs after it."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.passes_after = 0

    def send(self, *_: Any) -> None:
        if self.at is None:
            self.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)

    def hook(self, moment: Callable[[Any], None]) -> OnForward:
        def inject(_: int, states: Any) -> None:
            self.passes_after += self.at is not None
            moment(states)

        return inject


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """Runs that nothing interrupts."""
    runs = {name: tmp_path_factory.mktemp("complete") / name for name in ("dpo", "grpo")}
    for name, run in runs.items():
        assert leave_unreported(name, run) == 0
    return runs


def assert_same(run: Path, other: Path) -> None:
    """Bit for bit: the loss and gradient of every step, the tokens, and the adapter."""
    for key in ("step", "loss", "grad_norm", "num_tokens"):
        mine, theirs = ([r.get(key) for r in steps(p)[:4]] for p in (run, other))
        assert mine == theirs, key
    weights, others = adapter(run), adapter(other)
    assert all(bool((weights[key] == others[key]).all()) for key in others)


def interrupted(name: str, run: Path, sender: Sender, capsys: Any) -> list[str]:
    """Run into the signal; the names of the checkpoints that it leaves, all of them whole."""
    assert leave_with(name, run) == 143
    assert sender.at is not None and time.monotonic() - sender.at < 30
    output = capsys.readouterr()
    assert "SIGTERM: writing a checkpoint; a second one stops at once" in output.out
    assert "the same command resumes from there" in output.out
    stopped = read(run / "environment.json")["trained"]
    assert (stopped["exit_code"], stopped["reason"]) == (143, "SIGTERM")
    assert (run / "report.html").stat().st_size > 0
    kept = sorted((run / "checkpoints").glob("step-*"))
    assert not any(verify(path) for path in kept)
    assert not (run / "checkpoints" / ".staging").exists()
    return [path.name for path in kept]


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("grpo", "generation"),
        ("dpo", "backward"),
        pytest.param("grpo", "backward", marks=pytest.mark.long),
    ],
)
def test_in_the_middle_of_a_step(
    name: str, moment: str, tmp_path: Path, on_forward: Install, complete: Complete, capsys: Capsys
) -> None:
    """Step 4 is given up at once, and step 3, which was due no checkpoint, gets one."""
    run, sender, tokens = tmp_path / name, Sender(), 0

    def at(states: Any) -> None:
        nonlocal tokens
        tokens += NOW.micro_batches == 3 and NOW.phase == "generation"
        if moment == "generation" and tokens == 5:  # some are sampled already
            sender.send()
        elif moment == "backward" and NOW.micro_batches == 4 and learning():
            states.register_hook(sender.send)

    on_forward(sender.hook(at))
    assert interrupted(name, run, sender, capsys)[-1] == "step-000003"
    assert sender.passes_after == 0
    assert leave_unreported(name, run) == 0
    assert_same(run, complete[name])


def test_metrics_are_logged_with_every_checkpoint(tmp_path: Path) -> None:
    """However rarely otherwise: a run that resumes from it no longer has what came before."""
    few = ["training.max_steps=7", "training.save_steps=3", "training.logging_steps=10"]
    few += ["data.validation=4", "evaluation={limit: 4, max_new_tokens: 8, every: 5}"]
    assert leave_unreported("grpo", tmp_path / "run", *few) == 0
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 3, 5, 6, 7]


@pytest.mark.long  # test_a_terminal_that_is_closed is the short one
@pytest.mark.parametrize("name", ["grpo", "dpo"])
@pytest.mark.parametrize("moment", ["sealing", "writing"])
def test_while_a_checkpoint_is_saved(
    name: str,
    moment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    complete: Complete,
    capsys: Capsys,
) -> None:
    """The checkpoint is finished, and no step is begun."""
    from transformers import Trainer

    run, sender = tmp_path / name, Sender()
    owner: Any = CheckpointStore if moment == "sealing" else Trainer
    method = "publish" if moment == "sealing" else "_save_rng_state"
    real = getattr(owner, method)

    def interrupting(*given: Any) -> Any:
        sender.send()
        return real(*given)

    monkeypatch.setattr(owner, method, interrupting)
    assert interrupted(name, run, sender, capsys) == ["step-000002"]
    assert len(rows(run / "metrics.jsonl")) <= 3
    assert leave_unreported(name, run) == 0
    assert_same(run, complete[name])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("grpo", "before"),
        ("dpo", "after"),
        pytest.param("grpo", "after", marks=pytest.mark.long),
        pytest.param("dpo", "before", marks=pytest.mark.long),
    ],
)
def test_while_scoring(
    name: str, side: str, tmp_path: Path, on_forward: Install, complete: Complete, capsys: Capsys
) -> None:
    """Before training the scores are taken again; after it nothing is trained again."""
    run, sender = tmp_path / name, Sender()

    def at(_: Any) -> None:
        if side == "before" or (run / "adapter").exists():
            sender.send()

    on_forward(sender.hook(at))
    assert leave_unreported(name, run) == 143
    output = capsys.readouterr().err
    assert "stopped by SIGTERM; what is on the disk is complete" in output
    assert "Traceback" not in output
    assert not (run / "eval" / f"{side}.jsonl").exists()
    learned = NOW.micro_batches
    assert leave_unreported(name, run) == 0
    assert NOW.micro_batches - learned == (4 if side == "before" else 0)
    assert_same(run, complete[name])
    for file in ("before.jsonl", "comparison.json"):
        assert (run / "eval" / file).read_bytes() == (complete[name] / "eval" / file).read_bytes()


TWICE = """
import os, signal, sys
sys.path.insert(0, {root!r})
from posttrain.run.checkpoint import CheckpointStore
real = CheckpointStore.publish

def publish(self, *given):
    for _ in range(2 * len(self.steps())):
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, *given)

CheckpointStore.publish = publish
from posttrain.base.process import run_main
from scripts import dpo
run_main(lambda: dpo.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_second_signal_stops_at_once(tmp_path: Path, complete: Complete) -> None:
    """In the middle of the second save: the process is gone, the first checkpoint is whole."""
    run, program = tmp_path / "dpo", tmp_path / "scripts" / "twice.py"
    program.parent.mkdir()
    program.write_text(TWICE.format(root=str(ROOT)))
    result = run_script("twice", *arguments("dpo", run), project=tmp_path, timeout=300)
    assert result.returncode == -signal.SIGTERM
    (kept,) = (run / "checkpoints").glob("step-*")
    assert kept.name == "step-000002" and verify(kept) is None
    assert leave_unreported("dpo", run) == 0
    assert_same(run, complete["dpo"])


def test_a_terminal_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete: Complete
) -> None:
    """While a checkpoint is saved: SIGHUP, once by the shell and once by the terminal, and nobody
    to print to. The checkpoint is finished, and no step is begun."""
    run, publish = tmp_path / "grpo", CheckpointStore.publish
    reader, writer = os.pipe()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored

    def closing(*given: Any) -> Any:
        os.close(reader)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        return publish(*given)

    with monkeypatch.context() as patch, os.fdopen(writer, "w") as terminal:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(CheckpointStore, "publish", closing)
        assert leave_unreported("grpo", run) == 128 + signal.SIGHUP
        for stream in (sys.stdout, sys.stderr):  # the run's own
            stream.flush()
    (kept,) = (run / "checkpoints").glob("step-*")
    assert kept.name == "step-000002" and verify(kept) is None and len(steps(run)) == 2
    assert leave_unreported("grpo", run) == 0
    assert_same(run, complete["grpo"])


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with StopRequest(None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wanted()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)
