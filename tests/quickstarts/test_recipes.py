"""docs/extending.md and the first reward of docs/rewards.md, followed as a new user would.

Blocks are taken as they stand there. One that begins with `# FILE` is written to that file; one
with `--- FILE` changes it. All go into one copy of the project, which then trains two steps with
each script.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import DEMO_DATA, ROOT, copy_project, read, rows, run_script, write_rows
from tests.quickstarts.pages import blocks, commands, text_of
from tests.reliability.inside import steps

pytestmark = pytest.mark.timeout(600)
EXTENDING, REWARDS = (text_of(ROOT / "docs" / f"{name}.md") for name in ("extending", "rewards"))
COMMANDS = [*commands(EXTENDING), *(c for c in commands(REWARDS) if "my_rewards" in c)]
FEW = "training.max_steps=2 evaluation.limit=8 evaluation.max_new_tokens=24 --output"
GRPO = (
    "training.per_device_train_batch_size=16 training.max_completion_length=24 data.eval.limit=8 "
    f"{FEW} outputs/grpo"
)
DPO = (
    f"evaluation.replies=8 evaluation.also=[] training.per_device_train_batch_size=8 {FEW} "
    "outputs/dpo"
)


def apply(diff: str, project: Path) -> None:
    """Make the changes of a block to the one file that it names; each has one place in it."""
    first, *changes = diff.splitlines()
    name = first.removeprefix("--- ")
    lines = (project / name).read_text(encoding="utf-8").splitlines()
    for part in "\n".join(changes).split("\n@@\n"):
        marked = [(line[:1], line[1:]) for line in part.splitlines()]
        old = [line for mark, line in marked if mark != "+"]
        new = [line for mark, line in marked if mark != "-"]
        places = [n for n in range(len(lines)) if lines[n : n + len(old)] == old]
        assert len(places) == 1, f"{len(places)} places in {name} hold {old}"
        lines[places[0] : places[0] + len(old)] = new
    (project / name).write_text("\n".join([*lines, ""]), encoding="utf-8")


def run(project: Path, command: str, code: int = 0) -> str:
    """A command of a page, in the project: what it prints, and says is wrong where that is asked
    for."""
    _, name, *words = shlex.split(command)
    if name == "python":
        done = subprocess.run(
            [sys.executable, *words], cwd=project, capture_output=True, text=True, timeout=300
        )
    else:
        done = run_script(name, *words, project=project, cwd=project)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stderr if code else done.stdout


def write_files(page: str, project: Path) -> None:
    """Write the Python blocks of a page, each to the file that its first line names."""
    for block in blocks(page, "python"):
        first, _, body = block.partition("\n")
        (project / first.removeprefix("# ")).write_text(body.lstrip("\n"), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which every recipe was followed, with data of the reader's own."""
    copy = copy_project(tmp_path_factory.mktemp("recipes") / "project")
    for page in (EXTENDING, REWARDS):
        write_files(page, copy)
    for block in blocks(EXTENDING, "diff"):
        apply(block, copy)
        if block.startswith("--- scripts/grpo.py"):
            apply(block.replace("grpo", "dpo", 1), copy)
            apply(block.replace("grpo", "sft", 1), copy)
    (row,) = (json.loads(block) for block in blocks(REWARDS, "json") if "max_words" in block)
    problems = rows(DEMO_DATA / "problems_train.jsonl")[:40]
    others = [{**each, "max_words": n} for n, each in enumerate(problems)]
    write_rows(copy / "my_problems.jsonl", row, *others)
    pairs = [
        {
            "prompt": pair["prompt"],
            "replies": [pair["rejected"], pair["chosen"], f"{pair['rejected']} Hm."],
            "scores": [2, 9.5, 3],
        }
        for pair in rows(DEMO_DATA / "preferences.jsonl")[:60]
    ]
    write_rows(copy / "my_pairs.jsonl", *pairs)
    return copy


def command_with(word: str) -> str:
    (result,) = (command for command in COMMANDS if word in command)
    return result


@pytest.fixture(scope="module")
def grpo(project: Path) -> Path:
    """The run folder of two steps with the reward, the tracker and the measure of problems."""
    run(project, f"{command_with('my_rewards').replace(' --dry-run', '')} {GRPO}")
    return project / "outputs" / "grpo"


@pytest.fixture(scope="module")
def dpo(project: Path) -> Path:
    """The run folder of two steps with the format, the loss, the tracker and the measure."""
    losses = [word for word in shlex.split(command_with("loss_type")) if "loss_" in word]
    command = command_with("ranked").replace("data.holdout=1 data", "data.holdout=10 data")
    run(project, f"{command.replace('--dry-run', '')} {shlex.join(losses)} {DPO}")
    return project / "outputs" / "dpo"


@pytest.mark.long  # the runs below start the same commands
def test_each_command_is_a_dry_run_that_finds_nothing_wrong(project: Path) -> None:
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        output = run(project, command)
        assert "Config and data are fine" in output
        if "my_rewards" in command:
            assert "+ 0.5 x my_rewards.py:brief 1 = 2.5" in output


def test_a_reward_reads_a_third_column(project: Path, grpo: Path) -> None:
    limits = {row["question"]: row["max_words"] for row in rows(project / "my_problems.jsonl")}
    samples = rows(grpo / "samples.jsonl")
    assert len(samples) >= 4
    for sample in samples:
        short = len(sample["completion"].split()) <= limits[sample["question"]]
        assert sample["reward/my_rewards.py:brief"] == float(short)
    assert any("rewards/my_rewards.py:brief/mean" in row for row in rows(grpo / "metrics.jsonl"))


def test_a_format_of_pairs(project: Path, dpo: Path) -> None:
    pairs = {pair["prompt"]: pair for pair in rows(DEMO_DATA / "preferences.jsonl")[:60]}
    held_out = rows(dpo / "eval" / "before.jsonl")
    assert held_out
    for pair in held_out:
        own = pairs[pair["prompt"][-1]["content"]]
        assert (pair["chosen"], pair["rejected"]) == (own["chosen"], own["rejected"])


def test_a_loss(dpo: Path) -> None:
    config = (dpo / "config.yaml").read_text(encoding="utf-8")
    assert re.search(r"loss_type:\s*(- ipo\s+- sft|\[ipo, sft\])", config)
    # At the first step the margin is 0, and IPO's loss (1 / (2 beta))^2 = 25; sft adds its tenth.
    assert 25 < steps(dpo)[0]["loss"] < 26


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_a_tracker(name: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    logged = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    losses = {int(step): float(value) for step, key, value in logged if key == "loss"}
    assert losses == {row["step"]: row["loss"] for row in steps(run)}
    assert list(losses) == [1, 2]


@pytest.mark.parametrize(("name", "measure"), [("dpo", "question_share"), ("grpo", "dollar_rate")])
def test_a_measure_in_the_report(name: str, measure: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(name)
    for side in ("before", "after", "comparison"):
        assert read(run / "eval" / f"{side}.json")[measure]["n"] == 8
    page = (run / "report.html").read_text(encoding="utf-8").lower()
    assert measure.replace("_", " ") in page
