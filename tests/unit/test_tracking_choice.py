"""Whether W&B takes part; its real client writes what the run folder holds."""

import json
import os
import sys
import time
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import wandb

from eval.measures import Change
from eval.stats import Measure
from posttrain.base.errors import ConfigError
from posttrain.base.files import append_rows
from posttrain.run.folder import RunFolder
from posttrain.settings.command import check_packages
from posttrain.train import wandb_log
from posttrain.train.wandb_log import WandbLog, choose
from tests.helpers import ROOT, Capsys, demo_settings
from tests.unit.conftest import write_file
from tests.unit.test_server import Handler, serving
from tests.wandb_files import read_offline_run

TRACKED = "tracking.report_to=[wandb]"
KEY = "sentinel" + "0123456789abcdef" * 2
CLOSED = "http://127.0.0.1:9"
FACTS = {"data": "ab" * 32, "device": "CPU"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No trace of W&B in the environment; the client reads it once until it is torn down."""
    wandb.teardown()
    for name in [n for n in os.environ if n.startswith("WANDB_") or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")  # as start() sets it, for this test alone
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that refuses every key."""

    class Refuse(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send(401, "")

        do_GET = do_POST

    with serving(HTTPServer(("127.0.0.1", 0), Refuse)) as url:
        yield url


def test_the_mode_by_request_variable_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(requested=False)[0] == "off"
    mode, why = choose(requested=True)
    assert mode == "offline" and "WANDB_API_KEY" in why
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")  # to upload the files from elsewhere
    assert choose(requested=False) == ("offline", "WANDB_MODE is offline")
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for given, mode in (("online", "online"), ("disabled", "off"), ("offline", "offline")):
        monkeypatch.setenv("WANDB_MODE", given)
        assert choose(requested=False)[0] == mode
        wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    mode, why = choose(requested=False)
    assert mode == "offline" and "key cannot be used" in why


@pytest.mark.parametrize("name", ["netrc", ".netrc", "_netrc"])
def test_key_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """The one that NETRC names, or one in the home folder."""
    if name != "netrc":
        monkeypatch.delenv("NETRC")
        monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    for text, mode in (
        (f"machine elsewhere login user password {KEY}\n", "off"),
        (f"machine {urlsplit(CLOSED).netloc} login user password {KEY}\n", "online"),
        ("machine machine machine\nnonsense", "off"),
    ):
        (tmp_path / name).write_text(text)
        assert choose(requested=False)[0] == mode
        wandb.teardown()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(["wandb", "tensorboard"])
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="uv pip install trackio"):
        check_packages(["tensorboard", "trackio"])


def record(path: Path) -> RunFolder:
    """A run folder as a short GRPO run leaves it."""
    run = RunFolder(path)
    run.open(fresh=False)
    run.describe(demo_settings("grpo"), FACTS)
    append_rows(
        run.samples,
        [
            {"step": 1, "question": "q", "completion": "é\u2028\n", "reward/format": 1.0},
            {"step": 2, "question": "r", "completion": "", "reward/format": None, "extra": [1]},
        ],
    )
    run.write_rows("before", [{"question": "q", "text": "a"}])
    write_file(run.path / "data" / "report.json", '{"rows": 3}')
    picture = (ROOT / "assets" / "report.png").read_bytes()
    write_file(run.path / "plots" / "reward.png", picture)
    (run.path / "report.html").write_text("<p>a report</p>")
    write_file(run.adapter / "adapter_model.safetensors", b"weights")
    measure = Measure(0.5, 2, 0.1, 0.9)
    run.write_comparison({"strict": Change(0.0, 0.0, 0.0, 1.0, 2, before=measure, after=measure)})
    return run


def mirror(run: RunFolder, steps: range) -> WandbLog:
    """W&B's part of a run that trains `steps`."""
    log = WandbLog(run, demo_settings("grpo", TRACKED))
    log.start(FACTS)
    for step in steps:
        row = {"loss": step / 4, "rewards/a/mean": 1.0, "grad_norm": float("nan")}
        append_rows(run.metrics, [{"step": step, **row}])
        log.on_log(None, SimpleNamespace(global_step=step), None, logs=row)
    log.tables()
    return log


def offline_runs(run: RunFolder) -> list[Path]:
    """The folders to upload, once the client's own process has ended, as it does with a script."""
    wandb.teardown()
    return sorted((run.path / "wandb").glob("offline-run-*"))


def test_everything_is_in_the_offline_files(tmp_path: Path, capsys: Capsys) -> None:
    run = record(tmp_path / "run")
    settings = demo_settings("grpo", TRACKED)
    mirror(run, range(1, 4)).finish()
    (folder,) = offline_runs(run)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and f"wandb sync {folder}" in out
    assert err == ""
    written = read_offline_run(folder)
    assert written.project == "posttrain" and written.name == "grpo_demo"
    assert {
        name: written.config[name] for name in type(settings).model_fields
    } == settings.model_dump(mode="json")
    assert written.config["environment"]["data"] == FACTS["data"]
    by_step = {row["_step"]: row for row in written.history}
    assert [by_step[step]["loss"] for step in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert by_step[3]["rewards/a/mean"] == 1.0 and "grad_norm" not in by_step[3]
    assert written.summary["eval/before/strict/value"] == 0.5
    assert written.summary["eval/comparison/strict/p_value"] == 1.0
    samples = json.loads((folder / "files" / by_step[3]["tables/samples/path"]).read_text())
    assert samples["columns"] == ["step", "question", "completion", "reward/format", "extra"]
    assert samples["data"][0] == [1, "q", "é\u2028\n", 1.0, None]
    assert by_step[3]["tables/eval/before/nrows"] == 1
    assert by_step[3]["plots/reward/_type"] == "image-file"
    assert written.exit_code == 0
    contents = {
        name: {entry.path for entry in artifact.manifest.contents}
        for name, artifact in written.artifacts.items()
    }
    assert contents["grpo_demo-adapter"] == {"adapter_model.safetensors"}
    records = {"report.html", "eval/after.json", "plots/reward.png", "data/report.json"}
    assert records <= contents["grpo_demo-report"]
    adapter = json.loads(written.artifacts["grpo_demo-adapter"].metadata)
    assert adapter["data"] == FACTS["data"] and adapter["strict"]["value"] == 0.5


def test_resuming_is_the_same_run_and_sends_only_new_rows(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    first = mirror(run, range(1, 3))
    first.close(143)
    time.sleep(1.1)  # W&B names its folders by the second
    mirror(run, range(3, 5)).finish()
    one, two = (read_offline_run(folder) for folder in offline_runs(run))
    assert one.id == two.id == (run.path / "wandb" / "run_id.txt").read_text().strip()
    assert one.exit_code == 143
    assert [row["_step"] for row in one.history] == [1, 2]
    assert [row["_step"] for row in two.history] == [3, 4]


def test_scores_of_a_run_that_had_only_to_be_scored_belong_to_its_last_step(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    append_rows(run.metrics, [{"step": step, "loss": 0.5} for step in (1, 2, 3)])
    mirror(run, range(0)).finish()
    (folder,) = offline_runs(run)
    history = read_offline_run(folder).history
    assert history and {row["_step"] for row in history} == {3}


@pytest.mark.parametrize("server", ["refuses", "is out of reach"])
def test_without_a_server_it_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, refusing: str, server: str
) -> None:
    monkeypatch.setattr(wandb_log, "START_SECONDS", 5.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing if server == "refuses" else CLOSED)
    run = record(tmp_path / "run")
    mirror(run, range(1, 3)).finish()
    out = capsys.readouterr().out
    assert "W&B: no run on the server (" in out and KEY not in out
    (folder,) = offline_runs(run)
    assert len(read_offline_run(folder).history) == 2
    for path in run.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_failing_client_is_reported_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    run = record(tmp_path / "run")
    log = mirror(run, range(1, 2))
    client = log._run
    client.finish()  # whatever is logged from here on is an error of the client's
    for _ in range(3):
        log.on_log(None, SimpleNamespace(global_step=2), None, logs={"loss": 1.0})
    log.finish()
    assert capsys.readouterr().out.count("W&B failed") == 1
