"""The two demos: the real scripts on the embedded model, as a user runs them."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import demo_command, read, rows
from tests.pretend_gpu import installed
from tests.reliability.inside import steps, succeed

MEASURES = (
    *("reward_accuracy", "length_controlled_accuracy", "reward_margin"),
    *("french_share", "french_share_without_system", "ended_share", "mean_tokens"),
    *("repetition_rate", "kl_per_token"),
    *("arithmetic/strict", "arithmetic/tagged", "arithmetic/lenient"),
    *("arithmetic/format_rate", "arithmetic/truncated_rate"),
)
PROBLEMS = "path: assets/demo_data/problems_test.jsonl, limit: 20, max_new_tokens: 80"
ALSO = f"evaluation.also=[{{name: arithmetic, {PROBLEMS}}}]"
RECORD = ["config.yaml", "environment.json", "metrics.jsonl", "adapter/adapter_model.safetensors"]
RECORD += ["report.html", "plots/scores.png"]


def scores(run: Path) -> list[Any]:
    """Before, after and their comparison."""
    return [read(run / "eval" / f"{name}.json") for name in ("before", "after", "comparison")]


WHOLE = pytest.param((), marks=pytest.mark.long, id="whole")
PART = {
    "grpo": ("training.max_steps=10", "data.validation=20", "evaluation.limit=40"),
    "dpo": ("training.max_steps=30", "data.validation=20", "evaluation.replies=40", ALSO),
}


@pytest.mark.parametrize("part", [pytest.param(PART["grpo"], id="part"), WHOLE])
def test_grpo_demo_learns_to_compute(tmp_path: Path, part: tuple[str, ...]) -> None:
    """In 10 of its 40 steps, and in all of them."""
    run = tmp_path / "grpo"
    result = succeed("grpo", *demo_command("grpo", run, *part))
    before, after, comparison = scores(run)
    assert before["strict"]["n"] == (40 if part else 300)
    assert before["strict"]["value"] <= 0.45
    assert after["strict"]["value"] >= 0.85
    assert comparison["strict"]["p_value"] < 1e-6
    assert comparison["strict"]["low"] > 0
    for name in (*RECORD, "samples.jsonl"):
        assert (run / name).stat().st_size > 0
    sample = rows(run / "samples.jsonl")[0]
    assert {"completion", "answer", "reward/format", "reward/correctness"} <= set(sample)
    assert ("Training on Pretended card" if installed() else "No GPU here") in result.stdout
    assert "strict accuracy" in result.stdout
    finished = succeed("grpo", *demo_command("grpo", run, *part))
    assert "finished run" in finished.stdout


@pytest.mark.parametrize("part", [pytest.param(PART["dpo"], id="part"), WHOLE])
def test_dpo_demo_learns_french(tmp_path: Path, part: tuple[str, ...]) -> None:
    """In 30 of its 60 steps, and in all of them."""
    run = tmp_path / "dpo"
    replies, problems = (40, 20) if part else (200, 100)
    result = succeed("dpo", *demo_command("dpo", run, *part))
    before, after, comparison = scores(run)
    assert list(before) == list(after) == list(comparison) == [*MEASURES]
    assert before["reward_accuracy"]["value"] == 0.5  # the reference prefers nothing over itself
    assert after["reward_accuracy"]["value"] >= 0.95
    assert before["length_controlled_accuracy"]["value"] == 0.5
    assert after["length_controlled_accuracy"]["value"] >= 0.95  # not by preferring the longer
    assert after["length_controlled_accuracy"]["n"] >= 50
    assert 0.35 <= before["french_share"]["value"] <= 0.65
    assert after["french_share"]["value"] >= 0.95
    assert after["reward_margin"]["low"] > 0
    assert before["kl_per_token"] == {"value": 0.0, "n": replies, "low": 0.0, "high": 0.0}
    assert 0.01 < after["kl_per_token"]["low"] < after["kl_per_token"]["value"] < 1
    assert after["ended_share"]["value"] >= 0.95 and after["repetition_rate"]["value"] <= 0.05
    assert before["arithmetic/strict"]["n"] == after["arithmetic/strict"]["n"] == problems
    first = steps(run)[0]
    assert abs(first["rewards/margins"]) < 1e-5  # the policy starts as its reference
    for name in RECORD:
        assert (run / name).stat().st_size > 0
    assert_replies_are_whole(run, replies, before, after)
    out = result.stdout
    assert "length-controlled accuracy" in out and f"dpo, arithmetic (n = {problems})" in out
    assert " of them in language; the first of those:" in out
    example = out[out.index(" of them in language") : out.index("\nmeasure ")]
    assert max(map(len, example.splitlines())) <= 100


def assert_replies_are_whole(run: Path, count: int, before: Any, after: Any) -> None:
    """What a page on the run shows and a judge reads, in the same order on both sides."""
    prompts = []
    names = {"french_share": "in_language", "ended_share": "ended", "mean_tokens": "tokens"}
    for side, measured in (("before", before), ("after", after)):
        replies = rows(run / "eval" / f"{side}_replies.jsonl")
        assert len(replies) == count
        for name, key in names.items():
            mean = sum(row[key] for row in replies) / count
            assert mean == pytest.approx(measured[name]["value"])
        assert {row["system"] for row in replies} == {"Tu es un assistant qui répond en français."}
        assert all(row["text"] and row["prompt"] for row in replies)
        prompts.append([row["prompt"] for row in replies])
    assert prompts[0] == prompts[1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_a_locale_of_ascii(tmp_path: Path, name: str) -> None:
    """trl reads the template of its model card in the locale's encoding."""
    few = ["training.max_steps=1", "training.save_steps=1", "evaluation.limit=2"]
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    succeed(name, *demo_command(name, tmp_path / "run", *few), **ascii)


@pytest.mark.long
@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_without_training_nothing_changes(tmp_path: Path, name: str) -> None:
    """Nor are scores believed that stand in the folder without a checkpoint of the same run."""
    run = tmp_path / name
    (run / "eval").mkdir(parents=True)
    for stale in ("before", "before_replies"):
        (run / "eval" / f"{stale}.jsonl").write_text('{"of": "another run"}\n', encoding="utf-8")
    given = ["training.max_steps=0", "evaluation.limit=20", "data.validation=8"]
    given += ["evaluation.replies=20", ALSO] if name == "dpo" else []
    succeed(name, *demo_command(name, run, *given))
    for measure, values in scores(run)[-1].items():
        assert values["difference"] == 0, measure
        assert values["p_value"] == 1
