"""The run folder: what is kept, what is resumed, and files that can be read back, also damaged ones
and those of an earlier version."""

import importlib.metadata
import json
import math
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.measures import compare
from eval.preference import ScoredPair, scores
from eval.stats import Difference, Measure
from posttrain.base.errors import ConfigError, DataError, first_line
from posttrain.base.files import append_rows, jsonl_rows, keep_rows_until, write_json, write_text
from posttrain.base.processor import cores
from posttrain.run.folder import PACKAGES, RunFolder, git_commit
from posttrain.run.record import read_run
from posttrain.run.results import (
    Environment,
    Exported,
    FileScore,
    Stage,
    Trained,
    Validated,
    from_json,
)
from posttrain.settings.command import load_settings
from posttrain.train.resume import Resume
from posttrain.train.samples import SampleRecorder
from posttrain.train.session import report
from rewards import REWARDS
from tests.helpers import CONFIGS, ROOT, Capsys, demo_settings, settings_class

# Text that a model may well write and that line-based formats stumble over.
HARD = "é\u00a0: a\nb\r\nc \u2028 d \u2029 e \u0085 f \x0b\x0c\x1c\x1d\x1e g 😀 \t \\ \" ' </a>"


LIKE_YAML = (
    *("5e-6", "1_000", "12:30", "2024-01-01", "yes", "null", "", " spaces around "),
    *("- a: [b] # c", "{not: a mapping}"),
)
DEMO = ROOT / "configs" / "dpo_demo.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "outputs" / "mine")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, read as anyone's tool would: a line ends in a newline, nothing else."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_new_folder(run: RunFolder, fresh: bool, capsys: Capsys) -> None:
    run.open(fresh)
    assert (run.path / "eval").is_dir()
    run.metrics.write_text("kept")
    run.open(fresh=False)
    assert run.metrics.read_text() == "kept"
    assert [p.name for p in run.path.parent.iterdir()] == ["mine"]
    assert capsys.readouterr().out == ""


def test_a_resumed_run_keeps_its_threads_where_there_are_so_many(run: RunFolder) -> None:
    run.open(fresh=False)
    for recorded, kept in ((1, 1), (cores() + 1, None), (0, None), ("1", None)):
        write_json(run.path / "environment.json", {"threads": recorded})
        assert run.threads() == kept


def test_a_finished_run_that_is_trained_on_is_not_finished(run: RunFolder) -> None:
    run.open(fresh=False)
    for name in ("eval/comparison.json", "export.json"):
        write_text(run.path / name, name)
    for damaged in ("{", "[1]"):  # its environment is not needed
        write_text(run.path / "environment.json", damaged)
        assert run.finished and run.trained
    run.open(fresh=False)
    for damaged in ("", "[1]"):
        write_text(run.path / "environment.json", damaged)
        for read in (lambda: run.trained, run.threads, lambda: run.amend({})):
            with pytest.raises(ConfigError, match=f"^{run.path}/environment.json .*; restore it"):
                read()
    assert not run.finished and not (run.path / "export.json").exists()
    for name in ("eval/comparison", "export"):
        assert (run.path / f"{name}.previous.json").read_text() == f"{name}.json"


def test_a_fresh_start_moves_aside_and_never_deletes(run: RunFolder, capsys: Capsys) -> None:
    for number in range(4):
        run.open(fresh=True)
        assert not run.metrics.exists()
        run.metrics.write_text(f"run {number}")
    kept = {p.name: (p / "metrics.jsonl").read_text() for p in run.path.parent.iterdir()}
    earlier = {f"mine.previous-{n}": f"run {n - 1}" for n in (1, 2, 3)}
    assert kept == {"mine": "run 3", **earlier}
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Moved the earlier run to {run.path.with_name(name)}" for name in earlier]


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "big": 1e308, "int": 3, "no": None}
    append_rows(path, [row])
    assert json_lines(path) == [{**row, "nan": None, "inf": None, "minus": None}]


def test_rows_after_a_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "text": f"{HARD} {step}"} for step in (0, 1, 2, 2, 3, 10)]
    append_rows(path, rows)
    keep_rows_until(tmp_path / "not_there.jsonl", 2)
    keep_rows_until(path, 2)
    assert json_lines(path) == rows[:4]
    keep_rows_until(path, 0)
    assert json_lines(path) == rows[:1]


@pytest.mark.parametrize("torn", ["{", '{"step": 2, "lo', '{"step": 2, "text": "é', '{"step": 2}'])
def test_a_row_cut_off_by_a_crash_does_not_stop_the_next_run(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 1}])
    with open(path, "ab") as file:
        file.write(torn.encode("utf-8").removesuffix(b"\xa9"))  # also within a character
    keep_rows_until(path, 5)
    append_rows(path, [{"step": 2}])
    rows = json_lines(path)
    assert (rows[0], rows[-1]) == ({"step": 1}, {"step": 2})


def test_rows_are_read_up_to_damaged_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": 1, "text": HARD}])
    complete = path.read_bytes()
    path.write_bytes(complete + b'\n[1]\n\xff\n{"step": 4}\n{"st')
    damaged: list[int] = []
    assert jsonl_rows(path, damaged) == [{"step": 1, "text": HARD}, {"step": 4}]
    assert damaged == [3, 4]  # the last line is still being written
    with pytest.raises(DataError, match=r"metrics.jsonl: line 3 is not a JSON object"):
        jsonl_rows(path)
    path.write_bytes(complete.strip())
    assert jsonl_rows(path) == [{"step": 1, "text": HARD}]


@pytest.mark.parametrize("write", [write_text, write_json])
def test_a_file_is_replaced_or_untouched(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write(path, "first")
    before = path.read_text()
    for bad in ({"fails": {1, 2}}, {"value": math.nan}) if write is write_json else ("\ud800",):
        with pytest.raises((TypeError, ValueError, UnicodeEncodeError)):
            write(path, bad)
        assert path.read_text() == before
    write(path, "second")
    assert "second" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_comparison_is_read_back(run: RunFolder) -> None:
    run.open(fresh=False)
    before = scores([ScoredPair(0.0, 0.0, 7, 5)] * 4)
    after = scores([ScoredPair(1.5, -0.25, 7, 5)] * 4)
    comparison = compare(before, after)
    assert comparison["length_controlled_accuracy"].after.value is None
    assert not run.finished
    run.write_comparison(comparison)
    assert run.finished
    assert read_run(run.path).changes() == comparison
    measure, change = {"value", "n", "low", "high"}, {"difference", "low", "high", "p_value", "n"}
    files = {p.stem: json.loads(p.read_text()) for p in (run.path / "eval").iterdir()}
    fields = {name: set(content["reward_margin"]) for name, content in files.items()}
    assert fields == {"before": measure, "after": measure, "comparison": change}


OVERRIDES = [
    "training.learning_rate=1e-30",
    "training.learning_rate=0.30000000000000004",
    "training.extra.adam_epsilon=1e-8",
    "training.extra={adam_beta1: 0.8, optim_args: 'a=b', lr_scheduler_kwargs: {num_cycles: 2}}",
    *(f"prompt.system='{text}'" for text in LIKE_YAML),
    f"prompt.system={json.dumps(HARD, ensure_ascii=True)}",
    "prompt.system=null",
    "run.name='0x1'",
    "data.columns.prompt='7'",
    "lora.target_modules=['1e1', 'no']",
    "data.train={path: a.csv, limit: 3}",
]


@pytest.mark.parametrize(
    ("path", "overrides"), [*((path, []) for path in CONFIGS), *((DEMO, [o]) for o in OVERRIDES)]
)
def test_the_resolved_config_gives_the_same_settings(
    path: Path, overrides: list[str], run: RunFolder
) -> None:
    settings = load_settings(settings_class(path), path, overrides)
    run.open(fresh=False)
    run.describe(settings, {})
    assert load_settings(settings_class(path), run.path / "config.yaml") == settings


def test_the_environment(run: RunFolder) -> None:
    """It is written again at the end, with what was learned in between."""
    run.open(fresh=False)

    def described(**facts: Any) -> dict[str, Any]:
        run.describe(demo_settings("dpo"), facts)
        record: dict[str, Any] = json.loads((run.path / "environment.json").read_text("utf-8"))
        assert facts.items() <= record.items()
        return record

    record = described(device="CPU", data="abc")
    assert record["versions"] == {name: importlib.metadata.version(name) for name in PACKAGES}
    assert record["python"] == platform.python_version()
    assert record["git"] == git_commit()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", git_commit() or "0" * 40)
    assert {"started", "command", "platform"} <= set(record)
    time.sleep(1.1)  # it counts in seconds
    assert described(device="CPU", trained={"steps": 3})["started"] == record["started"]


LOGGED: list[tuple[str, float]] = []


def generation(step: int, count: int = 4) -> dict[str, Any]:
    """What trl hands to a reward function after one generation."""
    texts = [f"Step {step}.\n<answer>{i}</answer>" for i in range(count)]
    texts[-1] = HARD
    return {
        "prompts": [[{"role": "system", "content": "s"}, {"role": "user", "content": f"q{step}"}]]
        * count,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [[1] * (i + 2) for i in range(count)],
        "answer": ["1"] * count,
        "trainer_state": SimpleNamespace(global_step=step),
        "log_extra": None,
        "log_metric": lambda name, value: LOGGED.append((name, value)),
    }


def counting(**columns: Any) -> list[float | None]:
    return [None, *(float(i) for i in range(1, len(columns["completions"])))]


@pytest.mark.parametrize(
    ("group", "share"), [(1, [1.0, 1.0, 1.0]), (2, [0.5, 0.5, 0.0]), (4, [0.0, 0.0, 0.0])]
)
def test_share_of_groups_without_spread(tmp_path: Path, group: int, share: list[float]) -> None:
    """format earns 1 1 1 0, correctness 0 2 0 0, counting None 1 2 3."""
    LOGGED.clear()
    recorder = SampleRecorder(tmp_path / "samples.jsonl", 0, group)
    functions = recorder.wrap({**REWARDS, "counting": counting})
    columns = generation(0)
    scores = {f.__name__: f(**columns) for f in functions}
    assert scores["format"] == [1, 1, 1, 0] and scores["correctness"] == [0, 2, 0, 0]
    names = ["format", "correctness", "counting"]
    before_the_answer = [len("Step 0.")] * 3 + [len(HARD.partition("<answer>")[0].strip())]
    assert dict(LOGGED) == {
        **{f"rewards/{name}/zero_spread": value for name, value in zip(names, share, strict=True)},
        "rewards/format/unscored": 0.0,
        "rewards/correctness/unscored": 0.0,
        "rewards/counting/unscored": 0.25,
        "completions/reasoning": sum(before_the_answer) / 4,
    }


@pytest.mark.parametrize("count", [0, 3, 9])
def test_rows_are_written_once_a_generation(tmp_path: Path, count: int) -> None:
    """And scores, names and order of the rewards are unchanged."""
    path = tmp_path / "samples.jsonl"
    functions = {**REWARDS, "my_rewards.py:counting": counting}
    wrapped = SampleRecorder(path, count, 4).wrap(functions)
    assert [f.__name__ for f in wrapped] == list(functions)
    for step in range(3):
        columns = generation(step)
        for function, plain in zip(wrapped, functions.values(), strict=True):
            rows = len(json_lines(path)) if path.exists() else 0
            assert rows == step * min(count, 4), f"written before {function.__name__}"
            assert function(**columns) == plain(**columns)
    rows = json_lines(path) if path.exists() else []
    assert [row["question"] for row in rows] == [
        f"q{step}" for step in range(3) for _ in range(min(count, 4))
    ]


def test_a_sample_row(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for function in SampleRecorder(path, 4, 4).wrap({**REWARDS, "counting": counting}):
        function(**generation(7))
    rows = json_lines(path)
    assert rows[1] == {
        "step": 8,  # the first to learn from it
        "question": "q7",
        "answer": "1",
        "completion": "Step 7.\n<answer>1</answer>",
        "tokens": 3,
        "answer_elements": 1,
        "reasoning_characters": len("Step 7."),
        "reward/correctness": 2.0,
        "reward/format": 1.0,
        "reward/counting": 1.0,
    }
    assert rows[0]["reward/counting"] is None
    assert rows[0]["reward/correctness"] == 0.0
    assert rows[3]["completion"] == HARD


def test_where_a_run_resumes(run: RunFolder, capsys: Capsys) -> None:
    written = run.checkpoints.staging / "checkpoint-3"
    written.mkdir(parents=True)
    write_json(written / "trainer_state.json", {"global_step": 3, "max_steps": 12})
    run.checkpoints.publish(written, 3, {}, keep=1)
    resume = Resume(run, demo_settings("dpo", "training.max_steps=-1"), "auto")
    note = "Resuming from step 3 of 12 (checkpoints/step-000003); the scores from before training"
    assert resume.kept_scores(lambda: 7) == 7
    assert capsys.readouterr().out == f"{note} are kept\n"
    assert resume.kept_scores(lambda: None) is None
    assert capsys.readouterr().out == f"{note} are taken again\n"


def test_scores_of_other_settings_are_not_kept(run: RunFolder) -> None:
    """A run of other settings may have taken them after the checkpoint that is resumed from."""
    facts = {"data": "d", "weights": "w"}

    def opened(*overrides: str) -> bool:
        identity = run.identity(demo_settings("grpo", *overrides), facts)
        run.amend({"scores_of": run.drop_scores_of_others(identity)})
        return (run.path / "eval" / "before.jsonl").exists()

    run.open(fresh=False)
    run.write_rows("before", [])
    for same in ((), ("training.max_steps=7",), ("run.max_minutes=1",)):
        assert opened(*same)
    assert not opened("evaluation.temperature=0.5")
    run.write_rows("before", [])
    assert not opened()


@pytest.mark.parametrize("setting", ["training.max_steps=99", "run.patience=9"])
def test_a_longer_run_is_offered_where_there_is_an_option_for_it(
    run: RunFolder, setting: str
) -> None:
    first, other = (demo_settings("grpo", "evaluation.every=1", *more) for more in ((), (setting,)))
    run.open(fresh=False)
    run.describe(first, {})
    write_json(run.path / "eval" / "comparison.json", {})
    assert run.is_done(first, "auto") and not run.is_done(other, "auto", anyway=True)
    with pytest.raises(ConfigError, match="--resume-anyway to train on to the new length"):
        run.is_done(other, "auto")
    with pytest.raises(ConfigError, match=f"{setting.split('=')[0]} was ") as refused:
        run.is_done(other, "auto", "move it away")
    assert "--resume-anyway" not in str(refused.value)


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n no such thing\nand more")) == "no such thing"
    assert first_line(OSError()) == "OSError"


def test_training_ends_with_a_report_by_a_process(tmp_path: Path, capfd: Capsys) -> None:
    """One that fails costs the run nothing but a line."""
    run = RunFolder(tmp_path / "run")
    run.open(fresh=False)
    run.describe(demo_settings("dpo"), {"device": "CPU"})
    report(run.path)
    assert (run.path / "report.html").stat().st_size > 0
    out = capfd.readouterr().out
    assert out.startswith("run: not scored yet, 0 steps are logged\nReport    ")
    report(tmp_path / "nowhere")
    out, error = capfd.readouterr()
    assert "no run there" in error and "Traceback" not in error
    assert out.startswith("note: the report is not complete (exit code 2); ")


def test_a_field_that_does_not_fit_keeps_its_default_and_nothing_else_is_lost() -> None:
    values = {"value": 1, "n": "many", "low": float("nan"), "high": True, "added later": 3}
    assert from_json(Measure, values) == Measure(1.0, 0, None, None)
    assert from_json(Measure, [1]) == from_json(Measure, None) == Measure()
    entries = {"strict": {"difference": 0.5, "n": 3}, "odd": 3, "none": None}
    assert from_json(dict[str, Difference], entries) == {"strict": Difference(0.5, n=3)}
    assert from_json(dict[str, Difference], "odd") == {}
    row = from_json(Validated, {"step": 4, "measures": {"strict": {"value": 0.5, "n": 8}, "x": 1}})
    assert row == Validated(4, {"strict": Measure(0.5, 8)})


def test_records_inside_of_records_are_read() -> None:
    stage = Stage("warm_up", "a1", "sft", "d1", 40, "strict", Measure(0.1, 9), Measure(0.5, 9))
    content = {"stages": [asdict(stage), 3], "trained": {"steps": 4}, "kept": [], "git": None}
    record = from_json(Environment, json.loads(json.dumps(content)))
    assert record.stages == [stage] and record.kept is None and record.git == ""
    assert record.trained == Trained(4)


def test_what_is_written_is_what_is_read() -> None:
    score = FileScore("strict", 8, 6, 1, 2, 0.5, {"strict": Measure(0.5, 8, 0.1, 0.9)})
    entry = Exported("x.gguf", True, 10.0, score=score)
    assert from_json(Exported, json.loads(json.dumps(asdict(entry)))) == entry
