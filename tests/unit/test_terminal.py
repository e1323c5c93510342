"""What the commands print fits the terminal: tables leave something out, stack, or wrap."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.judge import Verdicts
from eval.measures import Change, summarise
from eval.stats import Measure
from posttrain.base import terminal
from posttrain.data.report.text import render_text
from posttrain.report import export_words
from posttrain.report.tables import as_text, compared, summary_table
from posttrain.run.record import read_run
from posttrain.run.results import Check, from_json
from scripts import doctor, judge
from tests.helpers import ROOT
from tests.runs import dpo_run, grpo_run
from tests.unit.test_pair_report import report_on, several

NARROW = (80, 60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [grpo_run(folder / "grpo"), dpo_run(folder / "dpo")]


@pytest.fixture(params=NARROW)
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.width() == 80  # of pytest's captured output
    for value, width, prose in (("60", 60, 60), ("132", 132, 100), ("7", 40, 40), ("x", 80, 80)):
        monkeypatch.setenv("COLUMNS", value)
        assert (terminal.width(), terminal.prose_width()) == (width, prose)


def test_the_comparison_fits(columns: int, runs: list[Path]) -> None:
    for some in ([runs[0]], [runs[1]], runs):
        text = as_text([compared(read_run(run).changes(), run.name) for run in some])
        assert widest(text) <= columns
        assert "[" in text and ("p-value" in text or "p < " in text)  # how sure it is stays
    changes = read_run(runs[0]).changes()
    long = {f"{'a_set_with_a_long_name_' * 4}/{name}": changes[name] for name in changes}
    assert widest(as_text([compared(long, "run" * 9)])) <= columns


def test_the_demos_table_is_a_table_at_80_columns() -> None:
    """Sets scored beside a run's own have a heading, so that their names cost no column."""
    measured = json.loads((ROOT / "bench/results/demo_cpu.json").read_text("utf-8"))
    changes = {name: from_json(dict[str, Change], result) for name, result in measured.items()}
    lines = as_text([compared(changes[name], name) for name in changes], 80).splitlines()
    assert " ".join(lines[0].split()) == "measure before after change (95% interval) p-value"
    headings = ["grpo_demo (n = 300)", "dpo_demo (n = 68 to 200)"]
    headings.append("dpo_demo, arithmetic (n = 100)")
    assert [line for line in lines if "(n = " in line] == headings
    assert not any(line.startswith("arithmetic: ") for line in lines)


def an_evaluation() -> str:
    return summary_table(summarise({"length_controlled_accuracy": [1.0] * 1319, "pass@8": [1.0]}))


def verdicts() -> str:
    share = Measure(1.0, 2000, 0.9981, 1.0)
    result = Verdicts(share, 1.2e-60, 2000, 2000, 0, 0, 0, 12, 4000, 0, 0, share, share)
    return judge.render("some-vendor/some-model-with-a-long-name-405b-instruct", result)


def the_doctor() -> str:
    sections, figures = doctor.look(ROOT)
    return doctor.as_text(sections, broken=False) + doctor.as_sums(figures)


@pytest.mark.parametrize(
    ("render", "shown"),
    [
        (an_evaluation, "pass@8"),
        (verdicts, "p = 1.2e-60"),
        (lambda: render_text(report_on(several(300))), "300"),
        (the_doctor, "GPU"),
    ],
)
def test_what_is_printed_fits(render: Callable[[], str], shown: str, columns: int) -> None:
    text = render()
    assert widest(text) <= columns
    assert shown in " ".join(text.split())


def test_the_checks_of_an_export_fit(columns: int) -> None:
    checks = [Check(name, 0.512345, 0.25, name != "weight_error") for name in export_words.WORDS]
    lines = export_words.lines(checks)
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines if line[2] != " "] == [
        "FAILED" if name == "weight_error" else "ok" for name in export_words.WORDS
    ]
