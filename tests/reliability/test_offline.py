"""Both demos without a network: what they leave on the disk where there are secrets about, and a
run whose newest checkpoint was swapped for a poisoned one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import ROOT, Capsys, read
from tests.reliability.inside import arguments, leave_with, steps
from tests.unit.test_trust import Payload, poison
from tests.wandb_files import read_offline_run

SECRETS = {
    "HF_TOKEN": "hf_" + "SentinelHub9" * 3,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "SentinelOld7" * 3,
    "WANDB_API_KEY": "5e9712e1" * 5,
    "OPENAI_API_KEY": "sk-" + "SentinelKey3-" * 3,
}
# Python reports every use of a socket to this hook, also one made by a library's own C code through
# the socket module, and a hook that raises stops it. Sockets of this machine stay open.
CLOSED = """
import os, sys, traceback

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = (arguments[0],)
    else:
        return
    if isinstance(address, (str, bytes)):  # a Unix socket
        return
    if address is None or address[0] in (None, "", "localhost", b"localhost", "127.0.0.1", "::1"):
        return
    with open(os.environ["CLOSED_LOG"], "a") as log:
        log.write(f"{event} {address}\\n" + "".join(traceback.format_stack()))
    raise OSError(101, "Network is unreachable")

sys.addaudithook(hook)
"""
# Scripts with their arguments one after the other, as to import the libraries takes the longest.
IN_TURN = """
import json, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as left:
        if left.code:
            raise
"""
FEW = ("training.max_steps=2", "training.save_steps=1")
# The plain DPO run, and GRPO with files of trackers beside ours.
RUNS = (("dpo",), ("grpo", "tracking.report_to=[wandb, tensorboard]"))
RECORD = [
    *("config.yaml", "environment.json", "metrics.jsonl"),
    *(f"eval/{name}.json" for name in ("before", "after", "comparison")),
    *(f"eval/{side}.jsonl" for side in ("before", "after")),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("adapter/tokenizer.json", "checkpoints/step-000002/manifest.json"),
]
BEST_BY = {"dpo": "rewards/accuracies", "grpo": "reward"}
MORE = {"dpo": ["data/report.json"], "grpo": ["samples.jsonl"]}


@dataclass(frozen=True)
class Sealed:
    """What a process left that ran scripts behind closed sockets, with secrets about."""

    result: subprocess.CompletedProcess[str]
    home: Path
    """HOME, the working folder, and every folder that a library may write to; a script's run is in
    the folder of its name."""
    tried: Path
    """Where attempts to reach another machine are noted, with what made them."""

    def assert_no_secret(self) -> None:
        """Neither in a file nor in what was printed."""
        written = {str(p): p.read_bytes() for p in self.home.rglob("*") if p.is_file()}
        assert len(written) > 10
        written["standard output"] = self.result.stdout.encode()
        written["standard error"] = self.result.stderr.encode()
        assert not [
            (name, variable)
            for name, content in written.items()
            for variable, value in SECRETS.items()
            if value.encode() in content
        ]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sealed]:
    """`sealed(("grpo", "key=value", ...), ...)` runs each script for two steps."""

    def start(*runs: tuple[str, ...]) -> Sealed:
        home, hooks = tmp_path_factory.mktemp("sealed"), tmp_path_factory.mktemp("hooks")
        (hooks / "sitecustomize.py").write_text(CLOSED)
        tried = hooks / "tried"
        environment = {
            **os.environ,
            **SECRETS,
            "HOME": str(home),
            "HF_HOME": str(home / "hub"),
            "UNSLOTH_COMPILE_LOCATION": str(home / "compiled"),
            "WANDB_MODE": "offline",
            "PYTHONPATH": str(hooks),
            "CLOSED_LOG": str(tried),
        }
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "WANDB_DIR"):
            environment.pop(name, None)
        commands = [
            [str(ROOT / "scripts" / f"{name}.py"), *arguments(name, home / name, *FEW, *overrides)]
            for name, *overrides in runs
        ]
        result = subprocess.run(
            [sys.executable, "-c", IN_TURN, json.dumps(commands)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=home,
            env=environment,
        )
        return Sealed(result, home, tried)

    return start


@pytest.fixture(scope="module")
def both(sealed: Callable[..., Sealed]) -> Sealed:
    return sealed(*RUNS)


def test_behind_closed_sockets(both: Sealed) -> None:
    """The whole record is there, and nobody even tried: so nothing waited for an answer either."""
    assert both.result.returncode == 0, both.result.stderr
    for script, *_ in RUNS:
        run = both.home / script
        for name in (*RECORD, *MORE[script]):
            assert (run / name).stat().st_size > 0, name
        for step, row in zip((1, 2), steps(run), strict=True):
            assert row["step"] == step
            path = run / "checkpoints" / f"step-{step:06d}" / "manifest.json"
            score = read(path)["score"]
            best = BEST_BY[script]
            assert score == {"metric": best, "value": row[best], "logged": 1}
    assert not both.tried.exists(), both.tried.read_text()


def test_no_secret_is_written(both: Sealed) -> None:
    both.assert_no_secret()
    assert any(path.name.endswith(".wandb") for path in both.home.rglob("*"))


def test_trackers_have_every_step(both: Sealed) -> None:
    run = both.home / "grpo"
    (folder,) = (run / "wandb").glob("offline-run-*")
    tracked = read_offline_run(folder)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    losses = {row["step"]: row["loss"] for row in steps(run)}
    logged = {row["_step"]: row["loss"] for row in tracked.history if "loss" in row}
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    assert logged == pytest.approx(losses) and shown == pytest.approx(losses)
    assert tracked.exit_code == 0
    assert {"model", "report"} <= {artifact.type for artifact in tracked.artifacts.values()}


@pytest.mark.long
def test_no_secret_is_in_a_traceback(sealed: Callable[..., Sealed], tmp_path: Path) -> None:
    """A reward that fails in the second step: the process dies with all that Python has to say."""
    (tmp_path / "failing.py").write_text(
        "class Gone(BaseException):  # an Exception of a reward is a message\n"
        "    pass\n"
        "def reward(completions, answer, **columns):\n"
        "    if columns['trainer_state'].global_step == 1:\n"
        "        raise Gone('the reward gave up')\n"
        "    return [0.0] * len(completions)\n"
    )
    rewards = f"rewards={{'{tmp_path}/failing.py:reward': 1.0}}"
    run = sealed(("grpo", rewards, "tracking.report_to=[wandb]"))
    assert run.result.returncode == 1
    assert "Traceback" in run.result.stderr and "the reward gave up" in run.result.stderr
    run.assert_no_secret()


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("rng_state.pth", "training_args.bin")),
    ],
)
def test_a_poisoned_checkpoint(both: Sealed, tmp_path: Path, capsys: Capsys, name: str) -> None:
    """Exit 2, and nothing of it ran."""
    import torch

    run, marker = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(both.home / "dpo", run)
    (run / "eval" / "comparison.json").unlink()  # as if it had been stopped
    checkpoint = run / "checkpoints" / "step-000002"
    earlier = read(checkpoint / "manifest.json")["facts"]
    torch.save({"state": Payload(marker)}, tmp_path / "payload")
    poison(checkpoint, name, (tmp_path / "payload").read_bytes(), step=2, facts=earlier)
    assert leave_with("dpo", run, *FEW) == 2
    assert f"step-000002/{name}: refused" in capsys.readouterr().err
    assert not marker.exists()
