"""An export that is killed while it scores goes on, and ends with the same files."""

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

from posttrain.base.errors import ConfigError
from posttrain.export import llama_cpp
from tests.helpers import ROOT, run_script

pytestmark = pytest.mark.long
PARITY = "{new_tokens: 24}"
TARGETS = ("merged_16bit", "gguf:q8_0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose files are made and not scored; not to be written to."""
    try:
        llama_cpp.find_tree(None)
    except ConfigError as error:
        pytest.skip(f"llama.cpp is not in the cache and cannot be fetched: {error}")
    folder = tmp_path_factory.mktemp("runs") / "grpo"
    made = run_script(
        *("grpo", "--config", ROOT / "configs" / "grpo_demo.yaml", "--output", folder),
        *("training.max_steps=1", "training.save_steps=1", "data.validation=0"),
        *("training.per_device_train_batch_size=8", "evaluation={limit: 200, max_new_tokens: 48}"),
        *("training.max_completion_length=24", "export.to=[merged_16bit, 'gguf:q8_0']"),
        f"export.parity={PARITY}",
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def finish(run: Path) -> str:
    done = run_script("export", run, "--to", ",".join(TARGETS), "--score")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(run: Path) -> dict[str, Any]:
    """All but the speed, which is the machine's."""
    record = json.loads((run / "export.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {}
    for target in TARGETS:
        result[target] = record["exports"][target]["score"] | {"tokens_per_second": None}
        for path in (run / "eval" / "exports" / target.replace(":", "-")).iterdir():
            result[f"{target} {path.name}"] = path.read_bytes()
    return result


@pytest.mark.parametrize(("target", "replies"), [("merged_16bit", 1), ("gguf:q8_0", 20)])
def test_killed_while_it_scores(target: str, replies: int, run: Path, tmp_path: Path) -> None:
    complete, broken = (
        Path(shutil.copytree(run, tmp_path / name)) for name in ("complete", "broken")
    )
    finish(complete)
    kept = broken / "eval" / "exports" / target.replace(":", "-") / "replies.jsonl"
    script = [sys.executable, str(ROOT / "scripts" / "export.py"), str(broken)]
    with subprocess.Popen(
        [*script, "--to", ",".join(TARGETS), "--score"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as export:
        while not kept.exists() or kept.read_bytes().count(b"\n") < replies:
            assert export.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        os.killpg(export.pid, signal.SIGKILL)
    there = kept.read_bytes().count(b"\n")
    assert replies <= there < 200
    with open(kept, "ab") as file:  # what a kill while writing would leave
        file.write(b'{"question": "half a li')
    assert f"{there} replies kept from an earlier call" in finish(broken)
    assert results(broken) == results(complete)
