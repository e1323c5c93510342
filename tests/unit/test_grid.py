"""./run repeat --grid: what is requested, which value is chosen, and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError, HealthError
from posttrain.report import page
from posttrain.report import seeds as words
from posttrain.report.verdict import verdict
from posttrain.run.folder import RunFolder
from posttrain.run.lenient import from_json
from posttrain.run.reading import read_run
from posttrain.run.repeated import Grid
from posttrain.run.results import Kept
from posttrain.scoring.grid import choose, why_stopped
from posttrain.scoring.seeds import over_seeds
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from posttrain.settings.repeat import parse_grid
from scripts import repeat
from tests.helpers import ROOT
from tests.runs import grpo_run

CONFIG = ["--config", str(ROOT / "configs" / "grpo_demo.yaml")]
RATES = "training.learning_rate=1e-5,2e-5,4e-5"


def test_every_combination_has_a_folder_of_its_own() -> None:
    result = parse_grid([RATES, "lora.r=8, 16"])
    assert len(result) == 6
    assert result[0].overrides == ["training.learning_rate=1e-5", "lora.r=8"]
    assert result[1].overrides == ["training.learning_rate=1e-5", "lora.r=16"]
    assert result[1].name == "learning_rate-1e-5_r-16"
    assert result[1].label == "learning_rate 1e-5, r 16"
    assert parse_grid([]) == []


@pytest.mark.parametrize(
    ("given", "output"),
    [
        (["--grid", "training.learning_rate=1e-5"], "two values or more"),
        (["--grid", "training.learning_rate=1e-5,"], "two values or more"),
        (["--grid", "training.learning_rate"], "two values or more"),
        (["--grid", "lora.r=8,8"], "both be in the folder r-8"),
        (["--grid", "model.name=A,a"], "both be in the folder name-a"),  # some disks ignore case
        (["--grid", "lora.r=8,16", "--grid", "lora.r=4,2"], "lora.r is there twice"),
        (["--grid", "training.seed=1,2"], "--seeds"),
        (["--grid", "data.validation=50,100"], "cannot be compared by validation"),
        (["--grid", "run.keep=best,last"], "trained alike"),
        (["--grid", "lora.r=8,16", "lora.r=4"], "lora.r: given as --grid and as a setting"),
        (["--grid", "lora.r=8,16", "data.validation=0"], "set data.validation to the number"),
        (["--grid", "lora.r=8,x"], "lora.r: should be a whole number"),
        (["--grid", "lora.rank=8,16"], "unknown setting"),
        (["--grid", "rewards.format=0.5,1", "data.answers=text"], "rewards are the score"),
        (["run.score=false"], "a repeat compares scores"),
        (["--grid", "prompt.system=a,b", "data.validation=9"], "it is part of each row"),
    ],
)
def test_what_is_wrong_with_a_grid(given: list[str], output: str, tmp_path: Path) -> None:
    method = "sft" if "prompt.system=a,b" in given else "grpo"
    config = ["--config", str(ROOT / "configs" / f"{method}_demo.yaml")]
    requested = [method, "--seeds", "1,2", *config, "--output", str(tmp_path / "grid"), *given]
    with pytest.raises(ConfigError, match=output):
        repeat.main(requested)
    assert not (tmp_path / "grid").exists()


def trained(run: Path, override: str, seed: int, validated: float, scored: bool = True) -> Path:
    """A run with a validation of its kept step, as the grid's command would have it."""
    value = parse_grid([f"{override},{override}0"])[0]
    own = [*value.overrides, f"training.seed={seed}", f"run.score={str(scored).lower()}"]
    own.append(f"run.name=grpo_demo-{value.name}-seed-{seed}")
    settings = load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml", own)
    folder = RunFolder(grpo_run(run))
    kept = {"step": 40, "by": "strict", "value": validated, "validations": 5}
    folder.describe(settings, {"data": "0" * 64, "trained": {"steps": 40}, "kept": kept})
    if not scored:
        for path in (run / "eval").glob("*"):
            path.unlink()
    # Of the 100 rows set aside two were too long, say.
    measures = {"strict": {"value": validated, "n": 98, "low": 0.0, "high": 1.0}}
    folder.write_rows("validation", [{"step": 40, "measures": measures}])
    return run


@pytest.fixture
def tried(tmp_path: Path) -> dict[str, dict[int, Path]]:
    """Ranks 2, 4 and 8 of two seeds each, the first of them better by validation than the last;
    only rank 4, which is best, was scored."""
    return {
        f"r-{rank}": {
            seed: trained(
                tmp_path / f"r-{rank}" / f"seed-{seed}", f"lora.r={rank}", seed, value, rank == 4
            )
            for seed, value in zip((1, 2), values, strict=True)
        }
        for rank, values in ((2, (0.4, 0.5)), (4, (0.7, 0.6)), (8, (0.3, 0.9)))
    }


VALUES = parse_grid(["lora.r=2,4,8"])


def test_the_highest_mean_is_chosen(tried: dict[str, dict[int, Path]]) -> None:
    result = choose(VALUES, tried, {})
    assert from_json(Grid, json.loads(json.dumps(result.as_json()))) == result
    assert (result.seeds, result.by, result.rows) == ([1, 2], "strict", 98)
    second = result.values[1]
    assert second.values == [0.7, 0.6] and second.mean == pytest.approx(0.65)
    assert second.sd == pytest.approx(0.0707, abs=1e-4) and second.steps == [40, 40]
    assert result.chosen == "r-4" and "equally good" not in result.how


def test_of_losses_the_lowest_mean_is_chosen(tried: dict[str, dict[int, Path]]) -> None:
    """As of an SFT run that has no problems to answer."""
    for run in (run for runs in tried.values() for run in runs.values()):
        kept = read_run(run).environment.kept or Kept()
        measures = {"reply_loss": {"value": kept.value, "n": 98, "low": 0.0, "high": 1.0}}
        RunFolder(run).write_rows("validation", [{"step": 40, "measures": measures}])
        RunFolder(run).amend({"kept": {**vars(kept), "by": "reply_loss"}})
    result = choose(VALUES, tried, {})
    assert result.chosen == "r-2" and "the lowest mean over seeds" in result.how


def test_of_equal_values_the_first_is_taken_and_told(tried: dict[str, dict[int, Path]]) -> None:
    trained(tried["r-8"][1], "lora.r=8", 1, 0.4)
    result = choose(VALUES, tried, {})
    assert result.chosen == "r-4"
    assert "2 values are equally good, the first given was taken" in words.choice(result)
    assert choose(list(reversed(VALUES)), tried, {}).chosen == "r-8"


def test_a_value_that_was_stopped_is_out(tried: dict[str, dict[int, Path]]) -> None:
    RunFolder(tried["r-4"][2]).amend({"trained": {"exit_code": 3, "reason": "it diverged. Mend"}})
    assert why_stopped(tried["r-4"][2]) == "it diverged"
    assert why_stopped(tried["r-4"][1]) is None and why_stopped(ROOT) is None
    stopped = {"r-4": "seed 2: it diverged"}
    left = {name: runs for name, runs in tried.items() if name != "r-4"}
    result = choose(VALUES, left, stopped)
    assert result.chosen == "r-8"
    assert result.as_json()["values"][1] == {  # type: ignore[index]
        "name": "r-4",
        "label": "r 4",
        "overrides": ["lora.r=4"],
        "stopped": "seed 2: it diverged",
    }
    assert "r 4    stopped" in words.grid_table(result)
    assert words.left_out(result) == ["Left out: r 4, seed 2: it diverged."]
    with pytest.raises(HealthError, match="no value of --grid could be trained: seed 2"):
        choose(VALUES, {}, stopped)


def test_values_of_other_data_are_not_compared(tried: dict[str, dict[int, Path]]) -> None:
    RunFolder(tried["r-8"][1]).amend({"data": "f" * 64})
    with pytest.raises(ConfigError, match="other data"):
        choose(VALUES, tried, {})


@pytest.mark.parametrize("columns", ["60", "200"])
def test_the_table_fits(
    tried: dict[str, dict[int, Path]], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = words.grid_table(choose(VALUES, tried, {}))
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "65.0% ± 7.1" in text and "strict accuracy in validation, 98 rows" in text


def test_the_page_shows_the_choice(tried: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    result, runs = over_seeds(tried["r-4"], GRPOSettings), list(tried["r-4"].values())
    written = page.write_seeds(tmp_path, result, runs, choose(VALUES, tried, {}))
    text = written.read_text(encoding="utf-8")
    assert "Choice by validation" in text and "Chosen: r 4" in text
    assert "65.0%\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}7.1" in text and "40 (chosen)" in text
    assert 'href="r-4/seed-1/report.html"' in text
    assert text.count("<svg") == 2  # validation by value, and the reward of every seed
    assert "src=" not in text and 'href="http' not in text
    assert "Choice by validation" not in page.write_seeds(tmp_path, result, runs).read_text()


def test_a_run_that_is_not_to_be_scored(tried: dict[str, dict[int, Path]]) -> None:
    """It is done once it is trained, unless it is asked for its scores, or of other settings."""
    run = RunFolder(tried["r-2"][1])
    own = ["lora.r=2", "training.seed=1"]

    def settings(*more: str) -> GRPOSettings:
        return load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml", [*own, *more])

    assert run.trained and not run.finished
    assert run.is_done(settings("run.score=false"), "auto")
    assert not run.is_done(settings(), "auto")
    with pytest.raises(ConfigError, match=r"(?s)lora.alpha was 32, now 8.*or do that"):
        run.is_done(settings("run.score=false", "lora.alpha=8"), "auto", "do that")
    assert verdict(read_run(run.path)).word == "not scored"
    run.amend({"trained": {"steps": 3, "exit_code": 143}})
    assert not run.trained


def test_the_sweep_leaves_what_is_there(
    tried: dict[str, dict[int, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script in the place of the real one fails, so that only what is whole can end well."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "grpo.py").write_text("import sys\nsys.exit(2)\n")
    monkeypatch.setattr(repeat, "ROOT", tmp_path)
    requested: Any = ["grpo", "--seeds", "1,2", *CONFIG, "--output", str(tmp_path)]
    requested += ["--grid", "lora.r=2,4,8"]
    assert repeat.main(requested) == 0
    output = capsys.readouterr().out
    assert "r 8, seed 2: trained" in output and "r 4, seed 2: finished" in output
    assert json.loads((tmp_path / "grid.json").read_text())["chosen"] == "r-4"
    assert json.loads((tmp_path / "seeds.json").read_text())["seeds"] == [1, 2]

    RunFolder(tried["r-4"][2]).amend({"trained": {"exit_code": 3, "reason": "it diverged"}})
    (tried["r-4"][2] / "eval" / "comparison.json").unlink()
    assert repeat.main(requested) == 2  # rank 8, now chosen, is to be scored
    captured = capsys.readouterr()
    assert "r 4, seed 2: left out, it diverged (move " in captured.out
    assert (
        "r 8, seed 1 ended with code 2; correct what is reported above and repeat, or move"
        in captured.err
    )

    # A value that a health check stopped is tried again once the checks are others.
    assert repeat.main([*requested, "health.max_still_steps=9"]) == 2
    assert "r 4, seed 2 ended with code 2" in capsys.readouterr().err

    # Values on other rows are not trained to the end before that is said.
    RunFolder(tried["r-4"][1]).amend({"data": "f" * 64})
    with pytest.raises(ConfigError, match=r"other data than .*data.overlong"):
        repeat.main(requested)

    with pytest.raises(ConfigError, match=r"(?s)lora.alpha was 32, now 8.*move .* away") as error:
        repeat.main([*requested, "lora.alpha=8"])
    assert "--resume" not in str(error.value)
