"""What several runs of one config, each with another seed, measured together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from eval.gsm8k import by_problem, problem_scores
from eval.measures import Scores, is_share
from eval.seeds import Repeated, SeedChange, difference_over_seeds, mean_over_seeds
from eval.stats import unvaried_interval
from posttrain.base.errors import ConfigError, DataError
from posttrain.run.folder import RunFolder
from posttrain.run.record import read_run
from posttrain.run.results import PromptReply
from posttrain.scoring import demonstrations, pairs
from posttrain.settings import DPOSettings, GRPOSettings, SFTSettings, TrainingSettings
from posttrain.settings.command import load_settings

SIDES = ("before", "after")
T = TypeVar("T")


def over_seeds(runs: Mapping[int, Path], settings_class: type[TrainingSettings]) -> Repeated:
    """The measures of finished runs by seed, with intervals over seeds, and over seeds and
    questions: those that could be scored with every seed, on both sides. A measure of fewer than
    two is left out. Raises ConfigError if a run is not finished, or was trained or scored on other
    data, DataError if every measure is left out."""
    for seed, folder in runs.items():
        if not RunFolder(folder).finished:
            raise ConfigError(f"{folder}: the run of seed {seed} is not finished")
    first, *others = (read_run(folder) for folder in runs.values())
    for run in others:
        if run.environment.data != first.environment.data:
            raise ConfigError(
                f"{run.path} was trained or scored on other data than {first.path}: a data file "
                "changed in between; move the older of the two folders away and repeat"
            )
    sides = [[_scores(folder, settings_class, s) for folder in runs.values()] for s in SIDES]
    changes = {name: _change(name, *sides) for name in sides[0][0]}
    if not (known := {name: each for name, each in changes.items() if each is not None}):
        why = "fewer than two held-out questions could be scored with every seed; score more"
        raise DataError(f"{first.path.parent}: {why}")
    return Repeated(list(runs), known)


def _change(name: str, before: Sequence[Scores], after: Sequence[Scores]) -> SeedChange | None:
    """A measure over seeds, given the scores with each; None where too little could be scored."""
    every = [scores[name] for scores in (*before, *after)]
    rows = [list(row) for row in zip(*every, strict=True)]
    known = [[score for score in row if score is not None] for row in rows if None not in row]
    if len(known) < 2:
        return None
    columns = [list(column) for column in zip(*known, strict=True)]
    first, second = columns[: len(before)], columns[len(before) :]
    a, b = (mean_over_seeds([sum(row) / len(row) for row in side]) for side in (first, second))
    difference = difference_over_seeds(first, second)
    if not is_share(name):
        return SeedChange(a, b, difference)
    # No share is below 0 or above 1, and no difference of shares below -1.
    a, b = (replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high)) for mean in (a, b))
    low, high = max(-1.0, difference.low), min(1.0, difference.high)
    if low == high:
        questions = zip(*first, strict=True)
        low, high = unvaried_interval(difference.mean, [sum(q) / len(q) for q in questions])
    return SeedChange(a, b, replace(difference, low=low, high=high))


def _scores(run: Path, settings_class: type[TrainingSettings], side: str) -> Scores:
    """Per measure, one score a question, in the same order for each seed and side."""
    settings = load_settings(settings_class, run / "config.yaml")
    if isinstance(settings, GRPOSettings):
        replies = [r for r in read_run(run).replies[side] if not isinstance(r, PromptReply)]
        return problem_scores(by_problem(_there(replies, run, side)))
    if isinstance(settings, SFTSettings):
        return _there(demonstrations.read_scores(RunFolder(run), side), run, side).measures()
    assert isinstance(settings, DPOSettings)
    return _there(pairs.read_scores(RunFolder(run), settings, side), run, side).measures()


def _there(scores: T | None, run: Path, side: str) -> T:
    if not scores:
        raise DataError(f"{run}/eval: the scores of each question {side} training are missing")
    return scores
