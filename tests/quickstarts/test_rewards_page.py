"""docs/rewards.md, followed as a new user would: its blocks, as they stand there.

Its first reward is followed in test_recipes.py. One of the others trains: problems whose answer is
a sentence, which the demo model learns to end with.
"""

import importlib.util
import json
import re
import runpy
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.helpers import ROOT, copy_project, read, rows, write_rows
from tests.quickstarts.pages import blocks, commands, text_of
from tests.quickstarts.test_recipes import run, write_files

pytestmark = pytest.mark.timeout(600)
PAGE = text_of(ROOT / "docs" / "rewards.md")
DRY_RUN, _, DATA, TRAIN, EVALUATE, EVALUATE_BASE, OVERLONG, MATH = commands(PAGE)
HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None
OF_NUMBERS = {"strict", "tagged", "lenient", "format_rate"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of the page."""
    copy = copy_project(tmp_path_factory.mktemp("rewards") / "project")
    write_files(PAGE, copy)
    (row,) = (json.loads(block) for block in blocks(PAGE, "json") if "frac" in block)
    write_rows(copy / "my_fractions.jsonl", row)
    return copy


@pytest.fixture(scope="module")
def sentences(project: Path) -> Path:
    """The run folder of the answers in a sentence."""
    run(project, DATA)
    run(project, TRAIN)
    return project / "outputs" / "sentences"


@pytest.mark.long
def test_answers_in_a_sentence_are_learnt(sentences: Path) -> None:
    before, after, change = (
        read(sentences / "eval" / f"{name}.json") for name in ("before", "after", "comparison")
    )
    for result in (before, after, change):
        assert list(result) == ["total_reward", "reward:words", "reward:exact", "truncated_rate"]
    for name in ("total_reward", "reward:words", "reward:exact"):
        assert change[name]["n"] == 300
        assert change[name]["low"] > 0.3 and change[name]["p_value"] < 1e-6
    assert before["reward:exact"]["value"] < 0.2 and after["reward:exact"]["value"] > 0.9
    for row in rows(sentences / "eval" / "after.jsonl"):
        assert row["total_reward"] == sum(row["rewards"].values())
        exact = row["reply"].endswith(row["answer"])
        assert row["rewards"]["my_sentences.py:exact"] == float(exact)


@pytest.mark.long
def test_the_run_speaks_of_rewards_alone(sentences: Path) -> None:
    page = (sentences / "report.html").read_text(encoding="utf-8")
    card = (sentences / "README.md").read_text(encoding="utf-8")
    for text in (re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page, flags=re.DOTALL), card):
        assert "otal reward" in text
        assert not re.search(r"strict acc|tagged acc|lenient|format rate", text, re.IGNORECASE)


@pytest.mark.long
def test_evaluate_scores_by_the_rewards_of_the_run(project: Path, sentences: Path) -> None:
    output = run(project, EVALUATE)
    assert "total reward" in output and "strict" not in output
    (report,) = project.glob("outputs/eval/sentences-adapter-*/report.json")
    result = read(report)["measures"]
    assert not OF_NUMBERS & set(result) and result["total_reward"]["n"] == 50
    after = {row["question"]: row for row in rows(sentences / "eval" / "after.jsonl")}
    kept = rows(report.parent / "replies.jsonl")
    same = [row["reply"] == after[row["question"]]["reply"] for row in kept]
    assert sum(same) >= 45  # the limit of tokens and the batches are others, so near ties may flip
    # With the reward changed, the same command scores the replies it has again.
    mine = project / "my_sentences.py"
    written = mine.read_text(encoding="utf-8")
    mine.write_text(written.replace("== 1) for", "== 2) for"), encoding="utf-8")
    assert "50 replies kept" in run(project, EVALUATE)
    mine.write_text(written, encoding="utf-8")
    again = rows(report.parent / "replies.jsonl")
    assert [row["reply"] for row in again] == [row["reply"] for row in kept]
    assert {row["rewards"]["my_sentences.py:exact"] for row in again} == {0.0}


@pytest.mark.long
def test_evaluate_scores_a_model_without_a_run(project: Path, sentences: Path) -> None:
    run(project, EVALUATE_BASE)
    (report,) = project.glob("outputs/eval/assets-demo_model-*/report.json")
    result = read(report)
    assert result["rewards"] == {"my_sentences.py:words": 1.0, "my_sentences.py:exact": 0.5}
    assert result["system"] is None
    assert result["measures"]["total_reward"]["value"] < 0.5


def test_the_first_command_shows_what_replies_would_earn(project: Path) -> None:
    assert re.search(r"earns format 1 \+ correctness 2 = 3", run(project, DRY_RUN))


def test_the_punishment_of_overlong_replies_is_trls_and_dapos(project: Path) -> None:
    assert "+ my_lengths.py:overlong 0 = 3" in run(project, OVERLONG)
    file = distribution("trl").locate_file("trl/rewards/other_rewards.py")  # imports nothing of trl
    theirs = runpy.run_path(str(file))["get_soft_overlong_punishment"]
    mine = runpy.run_path(str(project / "my_lengths.py"))
    ids = [[0] * length for length in range(121)]
    ours = mine["overlong"](ids)
    assert ours == theirs(mine["LONGEST"], mine["MARGIN"])(ids)
    assert min(ours) == -1 and max(ours) == 0


@pytest.mark.skipif(HAS_MATH_VERIFY, reason="math_verify is installed")
def test_without_math_verify_it_is_said_how_to_install_it(project: Path) -> None:
    output = run(project, MATH, code=2)
    assert "math_verify is not installed: .venv/bin/uv pip install --python .venv" in output
    assert "Traceback" not in output
