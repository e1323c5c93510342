"""The report page and plots of run folders that are complete, unfinished, damaged or hostile."""

import json
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from posttrain.base.errors import ConfigError
from posttrain.base.files import append_rows
from posttrain.report import differences, drawing, next_steps, page, page_data, plots, samples
from posttrain.report.curves import moving_average
from posttrain.report.model_card import render_model_card
from posttrain.report.tables import compared
from posttrain.report.verdict import Verdict, verdict
from posttrain.run.record import read_run, read_runs
from posttrain.run.results import Stage
from scripts import report
from tests.helpers import ROOT, Capsys, run_script
from tests.runs import dpo_run, grpo_metrics, grpo_run, sft_run, unfinished, write
from tests.unit.conftest import make_config, write_file
from tests.unit.test_report import write_run

HOSTILE = '<script>alert(1)</script><img src="http://example.org/x.png"></pre>&lt; '
GRPO_PLOTS = {"reward", "spread", "completion_length", "truncation", "scores"}
DPO_PLOTS = {"loss", "margin", "accuracy", "reply_length", "scores"}
VOID = {"wbr", "meta", "link", "br", "img", "path", "use"}


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_run(tmp_path_factory.mktemp("runs") / "grpo")


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dpo_run(tmp_path_factory.mktemp("runs") / "dpo")


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return grpo_run(tmp_path / "run", steps=3, questions=4)


class Page(HTMLParser):
    """What a reader gets of a page: its text, tags, ids and addresses; unclosed tags fail."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.tags, self.ids, self.links = "", [], [], []
        self._open: list[str] = []
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def written(run: Path) -> Page:
    return Page(page.write_report(run))


def test_a_finished_run_has_its_story(grpo: Path) -> None:
    shown = written(grpo)
    for words in (
        *("GRPO report", "Improved", "assets/demo_model", "assets/demo_data/problems_train.jsonl"),
        *("fingerprint 0123456789ab", "60 problems", "128 completions each, 16 groups of 8"),
        *("1 min 40 s", "training.max_completion_length", '"adamw_torch"', "unsloth_zoo"),
    ):
        assert words in shown.text
    assert {"scores", "training", "replies", "rollouts", "exports", "settings"} <= {*shown.ids}
    assert not {"health", "data", "files"} & {*shown.ids} and "Cost" not in shown.text
    assert {path.stem for path in (grpo / "plots").iterdir()} == GRPO_PLOTS
    assert shown.tags.count("svg") == len(GRPO_PLOTS)
    assert len(shown.ids) == len(set(shown.ids))
    for path in (grpo / "plots").iterdir():
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20]) == 1008
        assert path.stat().st_size < 200_000
    assert not list(grpo.rglob(".*.partial"))


def test_a_dpo_run_has_its_story(dpo: Path) -> None:
    shown = written(dpo)
    for words in (
        *("DPO report", "from 50.0% to 100.0%", "50% by construction", "only a few pairs"),
        *("Length-controlled accuracy", "not measurable"),
    ):
        assert words in shown.text
    rows = re.findall(r"812 rows[^.]*\.[^.]*\.", shown.text)[0]
    assert re.findall(r"\d+", rows) == ["812", "800", "760", "40", "12"]
    assert {path.stem for path in (dpo / "plots").iterdir()} == DPO_PLOTS
    # Every reply is counted in its own language.
    chips = re.findall(r"<strong>(\d+)</strong> ([^<]+)</li>", shown.source)
    assert chips == [
        ("20", "another language before, right language after"),
        ("0", "right language before, another language after"),
        ("20", "right language both times"),
        ("0", "another language both times"),
    ]


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        (40, ("Strict accuracy rose from 20.0% to 90.0%", "40 problems")),
        (0, ("Loss of held-out replies fell from 1.22 to 0.32", "20 replies")),
    ],
)
def test_an_sft_run_has_its_story(problems: int, words: tuple[str, ...], tmp_path: Path) -> None:
    run = sft_run(tmp_path / "sft", problems=problems)
    shown = written(run)
    for word in ("SFT report", "Improved", "Token accuracy", "16 replies each", *words):
        assert word in shown.text, word
    card = render_model_card(run)
    assert "Supervised fine-tuning, loss nll" in card
    assert "loss of held-out replies | 1.22" in card


@pytest.mark.parametrize(
    ("run", "label", "scored"),
    [("grpo", "strict accuracy", "60 problems"), ("dpo", "preference accuracy", "40 pairs")],
)
def test_one_headline_everywhere(
    run: str, label: str, scored: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A run is judged by what its method sets out to raise, whatever was scored beside it."""
    path = request.getfixturevalue(run)
    record, start = read_run(path), label[0].upper() + label[1:]
    judged = verdict(record)
    assert (judged.word, judged.measure) == ("improved", label)
    assert judged.sentence.startswith(f"{start} rose from ") and f"{scored})" in judged.sentence
    assert f"{path.name}: improved" in written(path).text
    both = Page(page.write_comparison([path, path], tmp_path / "compared.html"))
    assert both.text.count(f"{path.name}{label}") == 2  # a run and its measure, at a glance
    assert compared(record.changes()).rows[0].label == label
    card = render_model_card(path)
    assert card.count(scored.replace(" ", " held-out ")) == 2  # its first lines, its limitations
    assert f"{label} went from {judged.before} [" in card


def test_the_headline_comes_first_wherever_it_was_written(dpo: Path, tmp_path: Path) -> None:
    shutil.copytree(dpo, tmp_path / "run")
    path = tmp_path / "run" / "eval" / "comparison.json"
    write(path, dict(reversed(json.loads(path.read_text("utf-8")).items())))
    assert next(iter(read_run(tmp_path / "run").changes())) == "reward_accuracy"


@pytest.mark.parametrize("run", ["grpo", "dpo"])
def test_the_page_loads_nothing_and_is_small(run: str, request: pytest.FixtureRequest) -> None:
    """And its pictures fit it."""
    shown = written(request.getfixturevalue(run))
    assert {"script", "img", "iframe", "object"} & {*shown.tags} == set()
    assert {*shown.links} <= {"data:,", *(f"#{name}" for name in shown.ids)}
    assert not re.findall(r"@import|url\((?!#)", shown.source)
    assert "default-src 'none'" in shown.source and '<html lang="en">' in shown.source
    assert len(shown.source) < 200_000
    pictures = re.findall(r"<svg.*?</svg>", shown.source, flags=re.DOTALL)
    for svg in pictures:
        assert 'role="img" aria-label="' in svg and "width=" not in svg.partition(">")[0]
        assert "var(--series-1)" in svg and "font-family" not in svg and "<style" not in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert set(re.findall(r"font(?:-size)?: ([\d.]+px)", " ".join(pictures))) == {"11.5px"}
    assert {svg.split('viewBox="')[1].split()[2] for svg in pictures} == {"345.6"}


def test_data_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "run", steps=5, questions=8, hostile=HOSTILE)
    append_rows(run / "health.jsonl", [{"step": 1, "kind": HOSTILE, "message": HOSTILE}])
    checks = [{"name": HOSTILE, "value": 1, "limit": HOSTILE, "passed": False}]
    write(run / "export.json", {"exports": {HOSTILE: {"path": HOSTILE, "checks": checks}}})
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    write(run / "environment.json", {**environment, "device": HOSTILE, "git": HOSTILE})
    rows = [{"step": 1, f"rewards/{HOSTILE}$x^2$/mean": 1.0, "rewards/b/mean": 0.5, "reward": 1.0}]
    append_rows(run / "metrics.jsonl", rows)
    shown = written(run)
    assert HOSTILE in shown.text
    assert {"script", "img"} & set(shown.tags) == set()
    assert "example.org" not in "".join(shown.links)


def test_a_run_while_it_trains(tmp_path: Path) -> None:
    run = unfinished(grpo_run(tmp_path / "run"), steps=14)
    shown = written(run)
    assert "No scores yet" in shown.text and "Step 14 of 40 is logged" in shown.text
    assert "Reward on training data went from" in shown.text
    assert {path.stem for path in (run / "plots").iterdir()} == GRPO_PLOTS - {"scores"}
    assert "Could not be read" not in shown.text  # a line being written is not damage


PARTS = ["config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "eval/before.json"]
PARTS += ["eval/after.json", "eval/comparison.json", "eval/before.jsonl", "eval/after.jsonl"]
PARTS += ["health.jsonl", "export.json", "data/report.json", "eval/after_replies.jsonl"]
ODD = b'{"strict": {"value": "x", "low": NaN, "n": []}, "step": {}, "exports": 3, "warnings": [1]}'


@pytest.mark.parametrize("content", [None, b"[1]", b"{", b"\xff\xfe", ODD])
@pytest.mark.parametrize("name", PARTS)
def test_any_file_may_be_missing_or_damaged(name: str, content: bytes | None, short: Path) -> None:
    if content is None:
        (short / name).unlink(missing_ok=True)
        assert "Could not be read" not in written(short).text
    else:
        write_file(short / name, content)
        page.render(read_run(short), [])


def test_a_damaged_file_is_named(short: Path, tmp_path: Path) -> None:
    (short / "eval" / "after.json").write_text("{")
    (short / "samples.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    text = written(short).text
    assert f"Could not be read: {short.resolve() / 'eval/after.json'}" in text
    assert "samples.jsonl: lines left out because they are not a JSON object: 1" in text
    with pytest.raises(ConfigError, match="no run there"):
        page.write_report(tmp_path)


def test_one_file_is_enough(dpo: Path, tmp_path: Path) -> None:
    for alone, title in (("metrics.jsonl", "Training report"), ("config.yaml", "DPO report")):
        write_file(tmp_path / alone / alone, (dpo / alone).read_bytes())
        assert title in written(tmp_path / alone).text


def test_a_long_run_stays_small(short: Path) -> None:
    chance = random.Random(1)
    rows = [grpo_metrics(step, 2000, chance) | {"kl": chance.random()} for step in range(4, 2001)]
    for row in rows[700:800]:
        row["reward"] = float("nan")
    append_rows(short / "metrics.jsonl", rows)
    assert len(written(short).source) < 300_000
    assert (short / "plots" / "kl.png").exists()


def test_metrics_that_are_never_a_number_get_no_plot(short: Path) -> None:
    path = short / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.unlink()
    nothing = {"reward": None, "completions/clipped_ratio": "n/a"}
    append_rows(path, [{**row, **nothing} for row in rows])
    written(short)
    names = {path.stem for path in (short / "plots").iterdir()}
    assert "truncation" not in names and "reward" in names  # its parts are still there


def test_names_break_between_their_parts() -> None:
    parts = page.breakable("assets/demo_data/preferences.jsonl").split("<wbr>")
    assert parts == ["assets/", "demo_", "data/", "preferences", ".jsonl"]
    assert page.breakable("1.15.0 </answer> & 5e-6") == "1.15.0 &lt;/answer&gt; &amp; 5e-6"


@pytest.mark.parametrize("titled", [True, False])
def test_nothing_of_a_plot_is_cut_off(titled: bool, grpo: Path, dpo: Path, tmp_path: Path) -> None:
    many = grpo_run(tmp_path / "many", steps=9, questions=4)
    parts = {f"rewards/a_reward_with_a_long_name_{i}/mean": 1.0 for i in range(5)}
    append_rows(many / "metrics.jsonl", [{"step": 10, "reward": 1.0, **parts}])
    named = [tmp_path / f"a_run_with_a_long_name_and_learning_rate_{i}e-6" for i in range(3)]
    for path in named:
        shutil.copytree(grpo, path)
    sets = {f"{'a_long_name_of_a_set_' * 3}/strict": {"value": 0.5, "low": 0.4, "high": 0.6}}
    write(many / "eval" / "before.json", sets)
    drawn = [plot for run in (grpo, dpo, many) for plot in plots.plots(read_run(run))]
    drawn += plots.compared([read_run(path) for path in named])
    assert len(drawn) > 12
    for plot in drawn:
        with matplotlib.rc_context(drawing.STYLE):
            figure = drawing._figure(plot, titled)
            frame = figure.bbox
            (axes,) = figure.axes
            boxes = [axes.get_tightbbox(), *(text.get_window_extent() for text in figure.texts)]
            boxes += [legend.get_window_extent() for legend in figure.legends]
        for box in boxes:
            assert box.x0 >= 0 and box.x1 <= frame.x1, plot.name
            assert box.y0 >= 0 and box.y1 <= frame.y1, plot.name
        unit, *_ = figure.texts
        for legend in figure.legends:
            assert not legend.get_window_extent().overlaps(unit.get_window_extent()), plot.name
            assert not legend.get_window_extent().overlaps(axes.get_window_extent()), plot.name


def judged(path: Path, **changes: tuple[float, float, float, float]) -> Verdict:
    side = (0.5, 0.4, 0.6)
    run = write_run(path, {name: (side, side, change) for name, change in changes.items()})
    return verdict(read_run(run))


BETTER, WORSE = (0.1, 0.05, 0.15, 0.001), (-0.1, -0.15, -0.05, 0.001)


@pytest.mark.parametrize(
    ("name", "change", "word", "way"),
    [
        ("strict", BETTER, "improved", "rose from"),
        ("strict", WORSE, "got worse", "fell from"),
        ("strict", (0.1, 0.01, 0.21, 0.06), "no measurable change", ""),  # the two disagree
        ("reward_accuracy", BETTER, "improved", "rose from"),
        ("truncated_rate", WORSE, "improved", "fell from"),  # less is better
    ],
)
def test_the_verdict(name: str, change: Any, word: str, way: str, tmp_path: Path) -> None:
    result = judged(tmp_path / "run", **{name: change})
    assert result.word == word and way in result.sentence


def test_remarks_show_what_the_headline_hides(tmp_path: Path) -> None:
    more, cut = (0.05, 0.01, 0.09, 0.01), (0.04, 0.01, 0.07, 0.01)
    strict = (0.5, 0.45, 0.55, 0.0)
    result = judged(tmp_path / "run", strict=strict, lenient=more, truncated_rate=cut)
    assert result.word == "improved"
    assert any(remark.startswith("Most of the gain is format") for remark in result.remarks)
    assert any(remark.startswith("Got worse: truncated replies") for remark in result.remarks)


def test_health_exports_and_cost_are_shown(short: Path) -> None:
    (short / "health.jsonl").write_text("")
    assert "nothing to report" in written(short).text
    event = {"step": 2, "kind": "kl_spike", "message": "KL is high", "value": 0.5, "threshold": 0.1}
    append_rows(short / "health.jsonl", [{**event, "action": "warned"}])
    check = {"name": "same_tokens", "value": 0.998, "limit": 0.99, "passed": True}
    merged = {"path": "merged_16bit", "proven": True, "bytes": 988_000_000, "checks": [check]}
    write(short / "export.json", {"exports": {"merged_16bit": merged}})
    config = (short / "config.yaml").read_text("utf-8")
    config = config.replace("price_per_hour: null", "price_per_hour: 720.0")
    (short / "config.yaml").write_text(config, "utf-8")
    text = written(short).text
    for words in (
        *("Step 2, kl spike.", "KL is high", "(value 0.5, threshold 0.1)", "warned"),
        *("merged_16bit", "parity proven", "988.0 MB", "same tokens", "0.998"),
        *("Cost of training", "1.50", "at 720 an hour"),  # 7.5 s
    ):
        assert words in text


def test_settings_are_compared_with_their_defaults(grpo: Path) -> None:
    rows = differences.from_defaults(read_run(grpo))
    result = {key: (value, default) for key, value, default in rows}
    assert result["training.max_steps"] == ("40", "-1")
    assert result["model.name"] == ("assets/demo_model", "")  # it has no default
    assert result["data.eval.limit"] == ("300", "null")
    assert not {"lora.r", "rewards", "tracking.samples"} & {*result}


def test_settings_are_compared_between_runs(grpo: Path, dpo: Path) -> None:
    run = read_run(grpo)
    config = {**run.config, "rewards": {"correctness": 1.0}}
    config["training"] = {**run.config["training"], "extra": {"top_k": 5}, "max_steps": 80}
    config["run"] = {**run.config["run"], "name": "x"}
    assert sorted(differences.between([run, replace(run, config=config)])) == [
        ["rewards", "{format: 1.0, correctness: 1.0}", "{correctness: 1.0}"],
        ["training.extra", "{}", "{top_k: 5}"],
        ["training.max_steps", "40", "80"],
    ]
    keys = [key for key, *_ in differences.between([run, read_run(dpo)])]
    assert "rewards" not in keys  # only GRPO has any


def test_runs_of_the_same_name_are_distinguished(tmp_path: Path) -> None:
    runs = [grpo_run(tmp_path / name / "seed-1", questions=4) for name in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/seed-1", "b/seed-1"]
    assert [run.name for run in read_runs([runs[0], runs[0]])] == ["seed-1", "seed-1"]
    elsewhere = grpo_run(tmp_path / "more" / "a" / "seed-1", questions=4)
    assert [run.name for run in read_runs([runs[0], elsewhere])] == [str(runs[0]), str(elsewhere)]
    assert "a/seed-1" in Page(page.write_comparison(runs, tmp_path / "compared.html")).text


def test_a_comparison_of_runs(grpo: Path, dpo: Path, tmp_path: Path) -> None:
    longer = grpo_run(tmp_path / "longer", steps=50, questions=4)
    shown = Page(page.write_comparison([grpo, longer, dpo], tmp_path / "new" / "compared.html"))
    assert "3 runs compared" in shown.text and "Settings that differ" in shown.text
    assert shown.tags.count("svg") == 1  # the reward of the two
    assert len(shown.ids) == len(set(shown.ids))


def test_replies_are_picked_by_a_rule(grpo: Path) -> None:
    picked = samples.pairs(read_run(grpo))
    counts = [count for _, count in samples.flips(read_run(grpo))]
    assert sum(counts) == 60
    kinds = [(samples.mark(before)[0], samples.mark(after)[0]) for before, after in picked]
    assert kinds == sorted(kinds, key=list(samples.SHOWN).index)
    changes = ((False, True), (True, False), (True, True), (False, False))
    for kind, count in zip(changes, counts, strict=True):
        assert kinds.count(kind) == min(count, samples.SHOWN[kind])
    assert [samples.mark(reply)[1] for reply in picked[0]] == ["wrong", "right"]
    assert [step for step, _ in samples.rollouts(read_run(grpo))] == [1, 14, 27, 40]


def test_a_long_reply_loses_its_middle() -> None:
    text = "a" * 5000 + "<answer>7</answer>"
    short, left_out = samples.shorten(text)
    assert short.endswith("<answer>7</answer>") and left_out == len(text) - 420 - 260
    assert samples.shorten("short") == ("short", 0)


def test_time_adds_up_over_sessions_and_steps_are_guessed_from_epochs(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {max_steps: -1, num_train_epochs: 2.0}\n")
    times = (10.0, 20.0, 5.0, 15.0)
    rows = [{"step": n, "seconds": t, "epoch": n / 50} for n, t in enumerate(times, start=1)]
    append_rows(tmp_path / "metrics.jsonl", rows)
    append_rows(tmp_path / "metrics.jsonl", [{"step": 4, "validation/strict": 0.5}])
    assert (read_run(tmp_path).seconds, read_run(tmp_path).total_steps) == (35.0, 100)
    (tmp_path / "metrics.jsonl").unlink()
    for step in range(1, 117):  # of 116 steps an epoch, as trainers round it
        append_rows(tmp_path / "metrics.jsonl", [{"step": step, "epoch": step / 116}])
        assert read_run(tmp_path).total_steps == 232


def test_steps_of_a_stage_that_are_not_known_are_left_out(short: Path) -> None:
    run = read_run(short)
    stages = [Stage("warm_up", method="sft", steps=steps) for steps in (None, 0)]
    run = replace(run, environment=replace(run.environment, stages=stages))
    assert page_data.stages(run) == ["warm_up: SFT", "warm_up: SFT, 0 steps"]


def test_the_moving_average_leaves_gaps_out() -> None:
    values = np.array([1.0, 1.0, np.nan, 4.0, 4.0, 4.0, 4.0, 4.0])
    smooth = moving_average(values)
    assert np.isnan(smooth[2]) and smooth[0] == 1.0 and smooth[-1] == 4.0
    assert smooth[1] == 2.0  # of 1, 1 and 4


def test_a_fault_in_drawing_is_one_line(short: Path, capsys: Capsys) -> None:
    (short / "plots").write_text("in the way")
    assert report.main([str(short)]) == 1
    note, *lines = capsys.readouterr().out.splitlines()
    assert note.startswith(f"note: {short / 'report.html'} not drawn: ")
    assert "strict accuracy" in "\n".join(lines)


@pytest.mark.parametrize("inside", [True, False])
def test_the_next_commands_are_for_this_folder(
    grpo: Path, dpo: Path, inside: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(grpo.parent if inside else ROOT)
    lines = next_steps.next_commands(grpo, read_run(grpo).config).split("\n")
    name, above = ("grpo", f"{ROOT}/") if inside else (str(grpo), "")
    runner, data = f"{above or './'}run", f"{above}assets/demo_data/problems_test.jsonl"
    assert lines[1:] == [
        "Next",
        f"  {runner} chat {name}",
        f"  {runner} export {name} --to gguf:q8_0",
        f"  {runner} evaluate --model {name}/adapter --data {data} --samples 8",
    ]
    config = read_run(dpo).config
    mine = "--data assets/demo_data/problems_test.jsonl --language en"
    assert mine in next_steps.next_commands(dpo, config).replace(f"{ROOT}/", "")
    gone = json.loads(json.dumps(config).replace("problems_test", "gone"))
    assert "--data mgsm-fr --language fr" in next_steps.next_commands(tmp_path, gone)
    assert "evaluate" in next_steps.next_commands(tmp_path, {})  # with no config.yaml


def test_the_page_says_how_to_ask_the_model(tmp_path: Path) -> None:
    run = grpo_run(tmp_path / "some run", steps=2)
    assert "ask" not in written(run).ids  # no adapter yet
    make_config(run / "adapter")
    shown = written(run)
    assert "ask" in shown.ids and "./run chat 'some run'" in shown.text
    assert str(tmp_path) not in shown.text


def test_the_commands_after_an_export(grpo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grpo.parent)
    made = {"merged_16bit": "merged_16bit", "gguf:q8_0": "gguf/m.gguf", "ollama": "gguf/Modelfile"}
    head, *commands = next_steps.after_export(grpo, made, "m", {}).strip().split("\n  ")
    assert head == "Next"
    assert commands[0] == "ollama create m -f grpo/gguf/Modelfile && ollama run m"
    assert "evaluate --model grpo/gguf/m.gguf --data " in commands[1] and len(commands) == 2


def test_the_script_on_runs_of_all_kinds(grpo: Path, tmp_path: Path) -> None:
    early = unfinished(grpo_run(tmp_path / "early", questions=4), steps=3)
    trained = Path(shutil.copytree(early, tmp_path / "trained"))
    environment = json.loads((early / "environment.json").read_text("utf-8"))
    write(trained / "environment.json", {**environment, "trained": {"steps": 3, "seconds": 1.0}})
    result = run_script("report", grpo, early, trained, "--output", tmp_path / "compared.html")
    assert (result.returncode, result.stderr) == (0, "")
    for words in (
        "strict accuracy",
        "early: not scored yet, 3 steps are logged",
        "trained: not scored on the held-out data, as run.score is false",
    ):
        assert words in result.stdout
    for path in (grpo / "report.html", early / "report.html", tmp_path / "compared.html"):
        assert path.exists() and str(path) in result.stdout


def test_one_finished_run_gets_card_and_next_commands(short: Path, capsys: Capsys) -> None:
    """As training ends with this command; a run that is not trained has no card."""
    assert report.main([str(short)]) == 0
    out = capsys.readouterr().out
    assert f"Report    {short / 'report.html'}" in out
    assert "\n\nNext\n" in out and not (short / "README.md").exists()
    (short / "adapter").mkdir()
    assert report.main([str(short)]) == 0
    assert f"Adapter   {short / 'adapter'}" in capsys.readouterr().out
    assert (short / "README.md").read_text("utf-8") == render_model_card(short)
