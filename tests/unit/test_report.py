"""The before/after table, from a run folder written by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from markupsafe import escape

from eval import figures
from eval.measures import KINDS, Change, Judged, compare, headline, kind
from eval.stats import Measure
from posttrain.base.errors import ConfigError
from posttrain.report.page import PAGES
from posttrain.report.tables import as_markdown, as_text, compared, summary_table
from posttrain.run.folder import RunFolder
from posttrain.run.record import read_run, read_runs
from scripts import report
from tests.helpers import Capsys, run_script
from tests.unit.conftest import write_file

Measures = dict[str, tuple[tuple[float, float, float], tuple[float, float, float], Any]]

# measure: (before: value, low, high), (after: ...), (difference, low, high, p-value)
GRPO: Measures = {
    "strict": ((0.25, 0.2, 0.3), (0.875, 0.83, 0.91), (0.625, 0.55, 0.7, 3e-38)),
    "tagged": ((0.3, 0.25, 0.35), (0.29, 0.24, 0.34), (-0.01, -0.031, 0.012, 0.4531)),
    "lenient": ((0.5, 0.44, 0.56), (0.5, 0.44, 0.56), (0.0, 0.0, 0.0, 1.0)),
    "format_rate": ((0.0, 0.0, 0.0125), (1.0, 0.9874, 1.0), (1.0, 1.0, 1.0, 1e-6)),
    "truncated_rate": ((0.1, 0.07, 0.14), (0.0, 0.0, 0.01), (-0.1, -0.13, -0.07, 9.99e-7)),
}
DPO: Measures = {
    "reward_accuracy": ((0.5, 0.43, 0.57), (0.985, 0.96, 0.99), (0.485, 0.41, 0.55, 0.00012)),
    "reward_margin": ((0.0, 0.0, 0.0), (12.345, 11.9, 12.8), (12.345, 11.9, 12.8, 0.05)),
    "french_share": ((0.4, 0.33, 0.47), (0.95, 0.91, 0.97), (0.55, 0.48, 0.62, 0.011)),
}


def write_run(folder: Path, measures: Measures, n: int = 300) -> Path:
    files: dict[str, dict[str, Any]] = {"before": {}, "after": {}, "comparison": {}}
    for name, (before, after, change) in measures.items():
        for side, values in (("before", before), ("after", after)):
            measure = dict(zip(("value", "low", "high"), values, strict=True))
            files[side][name] = {**measure, "n": n}
        keys = ("difference", "low", "high", "p_value")
        files["comparison"][name] = {**dict(zip(keys, change, strict=True)), "n": n}
    for name, content in files.items():
        write_file(folder / "eval" / f"{name}.json", json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    return write_run(tmp_path / "grpo_demo", GRPO)


@pytest.fixture
def dpo(tmp_path: Path) -> Path:
    return write_run(tmp_path / "dpo_demo", DPO, n=200)


def comparison_table(paths: list[Path], width: int | None = None) -> str:
    runs = read_runs(paths)
    return as_text([compared(run.changes(), run.name) for run in runs], width)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table(grpo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grpo)  # a run is named by its folder, however that is given
    head, rule, *lines = comparison_table([Path(".")]).splitlines()
    names = ["run", "measure", "before", "after", "change (95% interval)", "p-value", "n"]
    assert cells(head) == names
    assert set(rule) == {"-", " "}
    assert cells(lines[0]) == [
        *("grpo_demo", "strict accuracy", "25.0% [20.0%, 30.0%]", "87.5% [83.0%, 91.0%]"),
        *("+62.5 points [+55.0, +70.0]", "< 1e-6", "300"),
    ]
    assert [cells(line)[-3:] for line in lines[1:]] == [
        ["-1.0 points [-3.1, +1.2]", "0.45", "300"],
        ["+0.0 points [+0.0, +0.0]", "1", "300"],
        ["+100.0 points [+100.0, +100.0]", "1e-06", "300"],
        ["-10.0 points [-13.0, -7.0]", "< 1e-6", "300"],
    ]


def test_every_renderer_shows_the_same_figures(grpo: Path, dpo: Path) -> None:
    for run in (grpo, dpo):
        table = compared(read_run(run).changes(), run.name)
        page = PAGES.get_template("parts.html.j2").module.table(table, "scores")  # type: ignore[attr-defined]
        wide, card = as_text([table], 300), as_markdown(table)
        for row in table.rows:
            assert f"{row.label[1:]}<" in page and row.note in page
            for cell in row.cells:
                assert (cell.full or cell.text) in wide and (cell.full or cell.text) in card
            for cell, column in zip(row.cells, table.columns[1:], strict=True):
                for figure in (cell.text, *cell.small) if column.page else ():
                    assert str(escape(figure)) in page
    assert 'class="up"' in page


def test_a_change_beyond_chance_has_a_tone() -> None:
    """`truncated_rate` is better where it falls; -0.01 with p = 0.45 is nothing."""
    better = Change(-0.1, -0.13, -0.07, 1e-6, 9)
    changes = {"truncated_rate": better, "strict": better, "tagged": Change(-0.01, -0.1, 0.1, 0.4)}
    assert [row.cells[2].tone for row in compared(changes).rows] == ["good", "bad", ""]


def test_every_measure_of_a_score_has_a_label() -> None:
    from eval import gsm8k, preference, replies

    reply = replies.MeasuredReply("x", 1, True, True, 0.0)
    of_replies = {m for language in ("fr", "de") for m in replies.scores([], language, [reply])}
    taken = {*gsm8k.MEASURES, *preference.scores([]), *of_replies, "kl_per_token"}
    assert taken <= set(KINDS)
    # And each kind of run has one headline.
    heads = [each.heads for each in KINDS.values() if each.heads]
    assert sorted(heads) == sorted(get_args(Judged))
    assert [kind(headline(each)).heads for each in heads] == heads


def test_not_measurable_in_every_output(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    comparison = compare({"length_controlled_accuracy": []}, {"length_controlled_accuracy": []})
    RunFolder(run).write_comparison(comparison)
    measured = {name: change.after for name, change in comparison.items()}
    assert cells(summary_table(measured).splitlines()[-1])[1:] == ["not measurable", "0"]
    assert cells(comparison_table([run]).splitlines()[-1]) == [
        *("run", "length-controlled accuracy", "not measurable", "not measurable", "-", "-", "0")
    ]


def test_figures_as_json(grpo: Path, dpo: Path, tmp_path: Path, capsys: Capsys) -> None:
    RunFolder(tmp_path / "none").open(fresh=False)
    nothing = compare({"length_controlled_accuracy": []}, {"length_controlled_accuracy": []})
    RunFolder(tmp_path / "none").write_comparison(nothing)
    runs = [grpo, dpo, tmp_path / "none"]
    assert report.main(["--json", *map(str, runs)]) == 0
    expected = {run.name: read_run(run).changes() for run in runs}
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected, default=asdict))
    (grpo / "eval" / "after.json").write_text("{")
    with pytest.raises(ConfigError, match=r"no scores there to compare.*after\.json"):
        report.main(["--json", str(grpo)])
    result = run_script("report", grpo, tmp_path / "nowhere")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'nowhere'}: no run there")
    assert "Traceback" not in result.stderr


def test_a_narrow_table_leaves_intervals_out_or_stacks(grpo: Path, dpo: Path) -> None:
    runs = [compared(read_run(run).changes(), run.name) for run in (grpo, dpo)]
    assert as_text(runs, 200) == as_text(runs) == comparison_table([grpo, dpo])
    lines = as_text(runs, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2] == "grpo_demo (n = 300)"
    figures = ["25.0%", "87.5%", "+62.5 points [+55.0, +70.0]", "< 1e-6"]
    assert cells(lines[3]) == ["strict accuracy", *figures]
    stacked = as_text(runs, 44)  # where that is too narrow too
    assert max(map(len, stacked.splitlines())) <= 44
    first = " ".join(stacked.split("tagged")[0].split())
    for figure in ("grpo_demo (n = 300)", *figures):
        assert figure in first


@pytest.mark.parametrize(
    ("name", "label", "value"),
    [
        ("strict", "strict accuracy", "25.0%"),
        ("mgsm_fr/strict", "MGSM-fr: strict accuracy", "25.0%"),
        ("my_set/some_new_rate", "my set: some new rate", "25.0%"),
        ("kl_per_token", "KL per token (nats)", "0.25"),
        ("never_heard_of", "never heard of", "0.25"),
    ],
)
def test_any_name_gets_a_label_and_a_format(name: str, label: str, value: str) -> None:
    line = summary_table({name: Measure(0.25, 7, 0.25, 0.25)}).splitlines()[-1]
    assert cells(line) == [label, f"{value} [{value}, {value}]", "7"]


def test_numbers_keep_what_matters_and_which_way_is_better() -> None:
    shown = {274.25: "274.2", 12.345: "12.35", 0.0: "0.00", 0.00042: "0.00042", -0.5: "-0.50"}
    assert {number: figures.plain("kl_per_token", number) for number in shown} == shown
    names = ("strict", "gsm8k/strict", "truncated_rate", "mean_tokens", "never_heard_of")
    assert [kind(name).better for name in names] == [1, 1, -1, 0, 0]
