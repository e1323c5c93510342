"""./run repeat: what several seeds measured together, from run folders made in a moment."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from eval import Completion
from eval.gsm8k import Problem, compare_replies, score_reply
from eval.seeds import difference_over_seeds, mean_over_seeds
from eval.stats import wilson_interval
from posttrain.base.errors import ConfigError, DataError
from posttrain.report import page, seeds
from posttrain.run.folder import RunFolder
from posttrain.run.record import read_run
from posttrain.scoring.seeds import _change, over_seeds
from posttrain.settings import DPOSettings, GRPOSettings, SFTSettings
from scripts import repeat
from tests.helpers import ROOT, Capsys, demo_settings
from tests.runs import dpo_run, grpo_run, sft_run, text_run
from tests.unit.conftest import write_file

CONFIG = ["--config", str(ROOT / "configs" / "grpo_demo.yaml")]


def with_answers(run: Path, right: list[int]) -> None:
    """Rewrite what a GRPO run scored after training: problem i is right where `right[i]` is 1."""
    folder, sides = RunFolder(run), []
    for side, given in (("before", [0] * len(right)), ("after", right)):
        replies = [
            score_reply(
                Problem(f"What is {i} + 1?", str(i + 1)),
                Completion(f"<answer>{i + (1 if good else 2)}</answer>", 9, False),
            )
            for i, good in enumerate(given)
        ]
        folder.write_rows(side, [reply.as_row() for reply in replies])
        sides.append(replies)
    folder.write_comparison(compare_replies(*sides))


@pytest.fixture
def three(tmp_path: Path) -> dict[int, Path]:
    """Seeds 1 to 3 that solve 30, 25 and 1 of 40 problems, and none before."""
    runs = {}
    for seed, solved in ((1, 30), (2, 25), (3, 1)):
        runs[seed] = grpo_run(tmp_path / f"seed-{seed}", questions=40)
        with_answers(runs[seed], [int((i + seed) % 40 < solved) for i in range(40)])
    return runs


def test_figures_are_those_of_the_questions(three: dict[int, Path]) -> None:
    result = over_seeds(three, GRPOSettings)
    assert result.seeds == [1, 2, 3]
    strict = result.measures["strict"]
    assert strict.after.values == [0.75, 0.625, 0.025]
    expected = mean_over_seeds([0.75, 0.625, 0.025])
    assert expected.low < 0 and expected.high > 1
    assert strict.after == replace(expected, low=0.0, high=1.0)
    # Questions are matched: their order in the file is that of their text, the same in each.
    order = sorted(range(40), key=lambda i: f"What is {i} + 1?")
    after = [
        [float((i + seed) % 40 < solved) for i in order]
        for seed, solved in ((1, 30), (2, 25), (3, 1))
    ]
    difference = difference_over_seeds([[0.0] * 40] * 3, after)
    assert difference.high > 1  # where no difference of shares lies
    assert strict.difference == replace(difference, high=1.0)
    assert json.loads(json.dumps(asdict(result)))["measures"]["strict"]["after"]["high"] == 1.0


def test_every_measure_of_a_dpo_run_is_there(tmp_path: Path) -> None:
    runs = {seed: dpo_run(tmp_path / f"seed-{seed}") for seed in (1, 2)}
    for run in runs.values():  # which the made run has no rows for
        for side in ("before", "after"):
            rows = RunFolder(run).read_rows(f"{side}_replies") or []
            keys = ("side", "system", "earlier", "prompt", "text", "tokens", "ended")
            kl = {"kl_per_token": 0.1 * (side == "after")}
            samples = [{key: row[key] for key in keys} | kl for row in rows]
            RunFolder(run).write_rows(f"{side}_replies_without_system", rows)
            RunFolder(run).write_rows(f"{side}_samples", samples)
            scored = [
                score_reply(Problem(f"What is {i} - {i - 2}?", "2"), Completion("2", 1, False))
                for i in range(3)
            ]
            RunFolder(run).write_rows(f"{side}_problems_arithmetic", [r.as_row() for r in scored])
    measures = over_seeds(runs, DPOSettings).measures
    assert measures["french_share"].before.values == [0.5, 0.5]
    assert measures["french_share"].difference.mean == 0.5
    assert measures["reward_accuracy"].after.sd == 0.0
    assert measures["kl_per_token"].difference.mean == pytest.approx(0.1)
    assert measures["arithmetic/lenient"].after.mean == 1.0
    assert "length_controlled_accuracy" not in measures  # no chosen reply is the shorter


@pytest.mark.parametrize("problems", [40, 0])
def test_seeds_of_sft_are_compared_by_loss_and_by_answers(problems: int, tmp_path: Path) -> None:
    runs = {
        seed: sft_run(tmp_path / f"seed-{seed}", problems=problems, loss=0.2 + 0.1 * seed)
        for seed in (1, 2)
    }
    result = over_seeds(runs, SFTSettings)
    loss = result.measures["reply_loss"]
    assert loss.before.values == pytest.approx([1.22, 1.22])
    assert loss.after.values == pytest.approx([0.32, 0.42])
    assert loss.difference.high < 0
    assert ("strict" in result.measures) == bool(problems)
    verdict = seeds.verdict(result, [read_run(run) for run in runs.values()])
    assert verdict.tone == "good"
    words = "Strict accuracy went from 20.0% to 90.0%"
    assert (
        words if problems else "oss of held-out replies went from 1.22 to 0.37"
    ) in verdict.sentence


def test_questions_that_a_reward_cannot_score_are_left_out(tmp_path: Path) -> None:
    runs = {seed: text_run(tmp_path / f"seed-{seed}", questions=30) for seed in (1, 2)}
    result, records = over_seeds(runs, GRPOSettings), [read_run(run) for run in runs.values()]
    for name, measured in result.measures.items():
        alone = records[0].changes()[name]
        assert measured.after.mean == pytest.approx(alone.after.value)
        assert measured.difference.mean == pytest.approx(alone.difference)
    assert {values.n for values in records[0].changes().values()} >= {29, 30}
    assert "2 seeds" in seeds.table(result, records)


@pytest.mark.parametrize(
    ("solved", "tone", "parts"),
    [
        (
            1,
            "flat",
            ["The seeds disagree", "seeds 1, 2; no measurable change with seed 3", "+2.5 to"],
        ),
        (8, "flat", ["Each seed taken alone", "+20.0 to +75.0 points"]),
        (28, "good", ["The seeds agree", "+62.5 to +75.0 points"]),
    ],
)
def test_seeds_that_disagree_are_reported(
    solved: int, tone: str, parts: list[str], three: dict[int, Path]
) -> None:
    with_answers(three[3], [1] * solved + [0] * (40 - solved))
    result, records = over_seeds(three, GRPOSettings), [read_run(run) for run in three.values()]
    verdict = seeds.verdict(result, records)
    assert verdict.tone == tone
    assert "Strict accuracy went from 0.0% to " in verdict.sentence
    assert "the mean of 3 seeds" in verdict.sentence
    for part in parts:
        assert part in verdict.remarks[0]


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_table_fits(
    three: dict[int, Path], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result, records = over_seeds(three, GRPOSettings), [read_run(run) for run in three.values()]
    text = seeds.table(result, records)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "46.7% ± 38.8" in text and "3 seeds, mean ± standard deviation" in text


def test_the_page_has_all_seeds(three: dict[int, Path], tmp_path: Path) -> None:
    result = over_seeds(three, GRPOSettings)
    text = page.write_seeds(tmp_path, result, list(three.values())).read_text(encoding="utf-8")
    for seed in three:
        assert f'href="seed-{seed}/report.html"' in text
        assert f">seed-{seed}<" in text  # in the legend of the curves
    assert "The seeds disagree" in text and "46.7% ± 38.8" in text
    assert "src=" not in text and 'href="http' not in text


def test_seeds_and_questions_that_all_agree_leave_an_interval() -> None:
    before, after = ([{"strict": [value] * 20}] * 3 for value in (0.0, 1.0))
    change = _change("strict", before, after)
    assert change is not None
    difference = change.difference
    assert (difference.low, difference.high) == (1 - wilson_interval(0, 20)[1], 1)


def test_runs_that_cannot_be_compared(three: dict[int, Path]) -> None:
    (three[3] / "eval" / "after.jsonl").unlink()
    with pytest.raises(DataError, match="each question after training are missing"):
        over_seeds(three, GRPOSettings)
    for run in three.values():
        with_answers(run, [1])
    with pytest.raises(DataError, match="fewer than two held-out questions could be scored"):
        over_seeds(three, GRPOSettings)
    RunFolder(three[2]).amend({"data": "f" * 64})
    with pytest.raises(ConfigError, match="seed-2 was trained or scored on other data"):
        over_seeds(three, GRPOSettings)
    (three[3] / "eval" / "comparison.json").unlink()
    with pytest.raises(ConfigError, match="seed 3 is not finished"):
        over_seeds(three, GRPOSettings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seeds", "1,1"], "two or more"),
        (["--seeds", "1,x"], "whole numbers"),
        (["--seeds", "1,2", "training.seed=3"], "--seeds"),
        (["--seeds", "1,-2"], "training.seed"),
        (["--seeds", "1,2", "evaluation.limit=1"], "evaluation.limit: one question"),
    ],
)
def test_what_is_wrong_on_the_command_line(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        repeat.main(["grpo", *CONFIG, *given])


def test_each_seed_is_a_separate_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script in the place of the real one writes down its arguments and its group's name."""
    write_file(
        tmp_path / "scripts" / "grpo.py",
        "import os, sys\n"
        "words = [*sys.argv[5:], os.environ['WANDB_RUN_GROUP']]\n"
        "open(sys.argv[4] + '.args', 'w').write(' '.join(words))\n"
        "sys.exit(3 if sys.argv[4].endswith('5') else 0)\n",
    )
    monkeypatch.setattr(repeat, "ROOT", tmp_path)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    args: Any = ["grpo", "--seeds", "5,6", *CONFIG, "--output", str(tmp_path), "lora.r=8"]
    assert repeat.main(args) == 3  # and seed 6 is not started
    assert [path.name for path in tmp_path.glob("*.args")] == ["seed-5.args"]
    written = (tmp_path / "seed-5.args").read_text()
    assert written == "lora.r=8 training.seed=5 run.name=grpo_demo-seed-5 grpo_demo"


@pytest.mark.parametrize(("export", "code"), [([], 0), (["export.to=[gguf:q8_0]"], 4)])
def test_finished_seeds_are_left_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, export: list[str], code: int
) -> None:
    """Only for an export is the script started again; one that is not proven ends nothing else."""
    for seed in (1, 2):
        own = [*export, f"training.seed={seed}", f"run.name=grpo_demo-seed-{seed}"]
        run = RunFolder(grpo_run(tmp_path / f"seed-{seed}"))
        run.describe(demo_settings("grpo", *own), {"data": "0" * 64})
    write_file(tmp_path / "scripts" / "grpo.py", "import sys\nsys.exit(4)\n")
    monkeypatch.setattr(repeat, "ROOT", tmp_path)
    args = ["grpo", "--seeds", "1,2", *CONFIG, "--output", str(tmp_path), *export]
    assert repeat.main(args) == code
    assert json.loads((tmp_path / "seeds.json").read_text(encoding="utf-8"))["seeds"] == [1, 2]
    assert (tmp_path / "report.html").exists()
    output = capsys.readouterr().out
    assert ("Seed 1: finished" in output) == (not export)
    assert "2 seeds, mean ± standard deviation" in output
    with pytest.raises(ConfigError, match="finished run of other settings"):
        repeat.main([*args, "lora.r=8"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_run_once(tmp_path: Path, number: signal.Signals) -> None:
    """The run counts its signals for a moment, as one that writes a checkpoint would."""
    heard, ready = tmp_path / "heard", tmp_path / "ready"
    write_file(
        tmp_path / "scripts" / "grpo.py",
        "import os, signal, sys, time\n"
        "heard = []\n"
        "for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(n, lambda number, frame: heard.append(int(number)))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "while not heard:\n"
        "    time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        f"open({str(heard)!r}, 'w').write(str(heard))\n"
        "sys.exit(128 + heard[0])\n",
    )
    command = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from scripts import repeat
repeat.ROOT = Path({str(tmp_path)!r})
sys.exit(repeat.main(["grpo", "--seeds", "1,2", *{CONFIG!r}, "--output", {str(tmp_path)!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        process_group=0,
        # Under nohup, or in the background, these tests have it ignored; so would the repeat.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)  # to its whole group, as a terminal does
    assert process.wait(30) == 128 + number
    assert heard.read_text() == str([int(number)])
