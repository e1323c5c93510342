"""Several processes under `accelerate launch`: one owns the run folder, all stop together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base import distributed
from posttrain.base.errors import ConfigError
from posttrain.base.process import run_main
from posttrain.run.folder import RunFolder
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from scripts import grpo
from tests.helpers import ROOT
from tests.runs import grpo_run

SETTINGS = load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml")


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two processes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def test_alone_nothing_is_different(tmp_path: Path) -> None:
    assert distributed.is_main() and distributed.processes() == 1
    assert RunFolder(tmp_path / "run").path == tmp_path / "run"
    assert distributed.highest(-1) == -1 and distributed.main_checkpoint(None) is None


@pytest.mark.usefixtures("second")
def test_the_second_process_leaves_the_run_folder_alone(tmp_path: Path) -> None:
    shared = tmp_path / "run"
    (shared / "checkpoints" / ".staging" / "checkpoint-2").mkdir(parents=True)
    (shared / "config.yaml").write_text("the main process's")
    before = files(tmp_path)
    run = RunFolder(shared)
    for fresh in (True, False):
        run.open(fresh)
        assert run.checkpoint("auto") is None
    run.describe(SETTINGS, {"data": "d"})
    run.write_rows("before", [{"a": 1}])
    assert files(tmp_path) == before
    assert run.read_rows("before") == [{"a": 1}]
    assert tmp_path not in run.path.parents
    # What the trainer writes goes to the shared folder: every process adds its random state there.
    assert run.checkpoints.staging == shared / "checkpoints" / ".staging"


def test_all_processes_know_that_a_run_is_finished(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = RunFolder(tmp_path / "run")
    run.open(fresh=False)
    run.describe(SETTINGS, {})
    (run.path / "eval" / "comparison.json").write_text("{}")
    request.getfixturevalue("second")
    assert RunFolder(tmp_path / "run").is_done(SETTINGS, "auto")


def test_a_finished_run_is_told_in_every_process(
    tmp_path: Path, second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.setenv("RANK", "0")
    grpo_run(path)
    monkeypatch.setenv("RANK", "1")
    output = ["--config", "configs/grpo_demo.yaml", "--output", str(path)]
    assert grpo.main(output) == 0


def test_another_number_of_processes_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    facts = {"data": "d", "weights": "w"}
    alone = run.identity(SETTINGS, facts)
    assert facts.items() <= alone.items()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run.identity(SETTINGS, facts) == {**alone, "processes": 2}


@pytest.mark.usefixtures("second")
def test_only_the_main_process_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards

    def main() -> int:
        print("a word")
        raise ConfigError("wrong")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    sys.stdout.close()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


TOGETHER = """
import sys, torch
from pathlib import Path
from scripts import grpo
from posttrain.base import distributed
from posttrain.train.stop import StopRequest

torch.distributed.init_process_group("gloo")
stop = StopRequest(None)
assert not stop.wanted()
if not distributed.is_main():
    stop.exit_code, stop.reason = 143, "SIGTERM"
assert stop.wanted() and stop.exit_code == 143
print(stop.reason, distributed.main_checkpoint(Path("mine") if distributed.is_main() else None))
distributed.barrier()
torch.distributed.destroy_process_group()
"""


NOT_FINITE = """
import json, sys, torch
from pathlib import Path
from types import SimpleNamespace
from scripts import grpo
from posttrain.base import distributed
from posttrain.base.errors import HealthError
from posttrain.settings.command import load_settings
from posttrain.settings import GRPOSettings
from posttrain.run.folder import RunFolder
from posttrain.train.watch import Watch

torch.distributed.init_process_group("gloo")
run = RunFolder(Path(sys.argv[1]))
run.open(fresh=False)
trainer = SimpleNamespace(  # what a Watch asks of a trainer
    state=SimpleNamespace(global_step=6),
    add_callback=lambda _: None,
    learnable=lambda batch: batch,
    rows_as_text=lambda batch: [{"of": distributed.rank()}],
)
watch = Watch(trainer, load_settings(GRPOSettings, Path(sys.argv[2])), run, None)
fine, teaches = torch.tensor(0.5), torch.tensor(float(distributed.is_main()))
watch.after_micro_batch(fine, teaches, True)
assert watch._learnable  # the other process has something to learn
loss = fine if distributed.is_main() else fine * float("nan")
try:
    watch.after_micro_batch(loss, teaches, True)
except HealthError as error:
    print(error)
distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first, second = together(NOT_FINITE, run, ROOT / "configs" / "grpo_demo.yaml")
    where = run / "health" / "step-000007"
    assert f"the loss of another process is not finite. Its rows are in {where}" in first
    assert "the loss is nan" in second and str(where / "batch-1.json") in second
    assert json.loads((where / "batch-1.json").read_text())["rows"] == [{"of": 1}]
    (event,) = map(json.loads, (run / "health.jsonl").read_text().splitlines())
    assert (event["kind"], event["action"]) == ("loss_not_finite", "stopped")


def test_two_processes_stop_together_and_take_up_one_checkpoint() -> None:
    first, second = together(TOGETHER)
    assert first.strip().endswith("another process stopped mine")
    assert second.strip().endswith("SIGTERM mine")


def together(code: str, *arguments: Path) -> list[str]:
    """What two processes print that run the same code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [output for output, _ in outputs]
