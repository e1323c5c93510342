"""What several runs of one config, each with a seed of its own, measured together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.gsm8k import by_problem, problem_scores
from eval.seeds import difference_over_seeds, mean_over_seeds
from posttrain.base.errors import ConfigError, DataError
from posttrain.run.folder import RunFolder
from posttrain.run.measures import is_share
from posttrain.run.record import read_run
from posttrain.scoring import demonstrations, pairs
from posttrain.settings import GRPOSettings, SFTSettings, TrainingSettings
from posttrain.settings.command import load_settings

SIDES = ("before", "after")
AllScores = dict[str, Any]
"""Per measure, one score a question; None where it could not be scored."""


def over_seeds(runs: Mapping[int, Path], settings_class: type[TrainingSettings]) -> dict[str, Any]:
    """What is in seeds.json, of finished runs by seed: `{"seeds", "measures"}`.

    A measure has `before` and `after` (`values` in the order of the seeds, `mean`, `sd`, `low`,
    `high`: Student's t over seeds) and `difference` (`mean`, `low`, `high`, `p_value`: over seeds
    and questions together). It is
    of the questions that could be scored with every seed, on both sides; where fewer than two
    could, it is left out.

    Raises:
        ConfigError: a run is not finished, or was trained or scored on other data.
        DataError: a row of its scores cannot be read.
    """
    for seed, run in runs.items():
        if not RunFolder(run).finished:
            raise ConfigError(f"{run}: the run of seed {seed} is not finished")
    check_same_data(list(runs.values()))
    scores = {side: [_scores(run, settings_class, side) for run in runs.values()] for side in SIDES}
    measures: dict[str, Any] = {}
    for name in scores["before"][0]:
        tables = {side: [found[name] for found in scores[side]] for side in SIDES}
        rows = zip(*tables["before"], *tables["after"], strict=True)
        known = [i for i, row in enumerate(rows) if None not in row]
        if len(known) < 2:
            continue
        tables = {side: [[row[i] for i in known] for row in tables[side]] for side in SIDES}
        found: dict[str, Any] = {
            **{
                side: mean_over_seeds([sum(row) / len(row) for row in tables[side]])
                for side in SIDES
            },
            "difference": difference_over_seeds(tables["before"], tables["after"]),
        }
        measures[name] = _possible(found) if is_share(name) else found
    return {"seeds": list(runs), "measures": measures}


def _possible(found: dict[str, Any]) -> dict[str, Any]:
    """The intervals of a share, cut where no share lies: 0 and 1, -1 and 1 for its difference."""
    return {
        name: {
            **values,
            "low": max(-1.0 if name == "difference" else 0.0, values["low"]),
            "high": min(1.0, values["high"]),
        }
        for name, values in found.items()
    }


def check_same_data(runs: Sequence[Path]) -> None:
    """Check that runs were trained and scored on the same rows.

    Raises:
        ConfigError: they were not; names two of them.
    """
    found = {}
    for run in runs:
        path = run / "environment.json"
        found[run] = json.loads(path.read_text(encoding="utf-8")).get("data")
    (first, data), *others = found.items()
    for run, other in others:
        if other != data:
            raise ConfigError(
                f"{run} was trained or scored on other data than {first}: a data file changed in "
                "between (move the older of the two folders away and repeat), or a setting of the "
                "grid decides which rows are too long and dropped (data.overlong)"
            )


def _scores(run: Path, settings_class: type[TrainingSettings], side: str) -> AllScores:
    """Per measure, one score a question, in the same order for each seed and side."""
    settings = load_settings(settings_class, run / "config.yaml")
    if isinstance(settings, GRPOSettings):
        replies: Any = read_run(run).replies[side]
        return {**problem_scores(by_problem(_there(replies, run, side)))}
    if isinstance(settings, SFTSettings):
        of_sft: demonstrations.Scores = _there(
            demonstrations.read_scores(RunFolder(run), side), run, side
        )
        answers = problem_scores(by_problem(of_sft.replies)) if of_sft.replies else {}
        return {**answers, demonstrations.LOSS: of_sft.losses}
    found: pairs.Scores = _there(pairs.read_scores(RunFolder(run), settings, side), run, side)
    scores: AllScores = {**found.measures()}
    for name, answered in found.problems.items():
        of_set = problem_scores(by_problem(answered))
        scores |= {f"{name}/{measure}": each for measure, each in of_set.items()}
    return scores


def _there(found: Any, run: Path, side: str) -> Any:
    if not found:
        raise DataError(f"{run}/eval: the scores of each question {side} training are missing")
    return found
