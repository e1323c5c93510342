"""Every command of the README, run in a copy of the project on local data, with few steps."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from posttrain.model.llama_server import serve
from posttrain.report import table
from tests.helpers import ROOT, copy_project

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("    #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
# Where the demo model and local files stand for a model and data of the hub.
LOCAL_PAIRS = (
    "--dry-run model.name=assets/demo_model data.holdout=20 evaluation.also=[] "
    "data.train.path=assets/demo_data/preferences.jsonl data.columns.prompt=prompt"
)
LOCAL_PROBLEMS = (
    "--dry-run model.name=assets/demo_model data.train.path=assets/demo_data/problems_train.jsonl "
    "data.eval.path=assets/demo_data/problems_test.jsonl data.train.subset=null "
    "data.eval.subset=null"
)
ADDED = {
    "./run demo": "training.max_steps=2 evaluation.limit=8",
    "./run dpo --config configs/dpo_french_16gb.yaml": LOCAL_PAIRS,
    "./run dpo --config configs/dpo_french_t4.yaml": LOCAL_PAIRS,
    "./run grpo --config configs/grpo_gsm8k_16gb.yaml": LOCAL_PROBLEMS,
    "./run grpo --config configs/grpo_gsm8k_t4.yaml": LOCAL_PROBLEMS,
}
REPLACED = {
    "Qwen/Qwen2.5-0.5B-Instruct": "assets/demo_model",
    "--data gsm8k": "--data assets/demo_data/problems_test.jsonl --limit 4",
    "--data mgsm-fr": "--data assets/demo_data/problems_test.jsonl --limit 4",
    "problems_test.jsonl": "problems_test.jsonl --limit 4",
    "gguf:q4_k_m": "gguf:f16",  # which needs no compiler
    "--model MODEL": "--model judge",
}
NOT_RUN_HERE = {"./run test"}  # this is it


def test_every_command_is_known() -> None:
    """A command that is new in the README has to run below, or be listed above."""
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "./run", command
        name = words[1]
        assert name in ("demo", "test") or (ROOT / "scripts" / f"{name}.py").is_file(), command
        for word in words[2:]:
            if word.endswith((".yaml", ".jsonl")):
                assert (ROOT / word).is_file(), word
    assert set(ADDED) | NOT_RUN_HERE <= set(COMMANDS)


def test_the_table_is_that_of_the_measured_demo() -> None:
    measured = ROOT / "tests" / "bench" / "results" / "demo_cpu.json"
    runs = json.loads(measured.read_text(encoding="utf-8"))
    assert table(list(runs.items()), width=100) in README


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.skipif(
    not (ROOT / ".venv" / "installed.lock").exists(), reason="not installed by ./run"
)
def test_every_command_runs(tmp_path: Path) -> None:
    copy = copy_project(tmp_path / "project")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

    def run(command: str) -> None:
        result = subprocess.run(
            ["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True
        )
        said = f"{command}\n{result.stdout}\n{result.stderr}"
        # Without the hub in reach, ./run doctor answers 2, and says so.
        expected = (0, 2) if command == "./run doctor" else (0,)
        assert result.returncode in expected, said

    commands = [command for command in COMMANDS if command not in NOT_RUN_HERE]
    served = [command for command in commands if "http://" in command]
    for command in commands:
        if command not in served:
            run(_here(command))
    (gguf,) = (copy / "outputs" / "grpo_demo" / "gguf").glob("*q8_0.gguf")
    with serve(gguf) as url:
        for command in served:
            run(re.sub(r"http://[\w.:]+", url, _here(command)))


def _here(command: str) -> str:
    added = ADDED.get(command, "")
    for there, here in REPLACED.items():
        if here not in command:
            command = command.replace(there, here)
    return f"{command} {added}".strip()
