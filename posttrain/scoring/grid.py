"""Which of several values a config is best trained with, by validation alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.measures import kind
from eval.seeds import mean_over_seeds
from eval.stats import NOT_MEASURABLE, Measure
from posttrain.base.errors import ConfigError, HealthError
from posttrain.run.reading import read_run
from posttrain.run.record import Run
from posttrain.run.repeated import Grid, Tried
from posttrain.run.results import Kept
from posttrain.scoring.seeds import check_same_data
from posttrain.settings.repeat import Value

ROUNDING = 1e-9  # closer means are equal


def choose(
    values: Sequence[Value], runs: Mapping[str, Mapping[int, Path]], stopped: Mapping[str, str]
) -> Grid:
    """The validation of every value, and the best of them.

    `runs` are the trained runs of a value's name by seed; `stopped` holds for the other values why
    a health check ended one of their runs.

    Raises:
        ConfigError: a run has no validation, or was trained or validated on other data.
        HealthError: no value could be trained with every seed.
    """
    if not runs:
        raise HealthError(f"no value of --grid could be trained: {'; '.join(stopped.values())}")
    check_same_data([run for of_value in runs.values() for run in of_value.values()])
    tried = [
        Tried(value.name, value.label, value.overrides, stopped=stopped[value.name])
        if value.name in stopped
        else _validated(value, list(runs[value.name].values()))
        for value in values
    ]
    first = next(iter(runs.values()))
    kept, measure = _kept(read_run(next(iter(first.values()))))
    sign = -1 if kind(kept.by).better < 0 else 1
    means = {row.name: sign * row.mean for row in tried if row.mean is not None}
    equal = [name for name, mean in means.items() if mean > max(means.values()) - ROUNDING]
    how = f"the {'lowest' if sign < 0 else 'highest'} mean over seeds on rows set aside from the "
    how += "training data (data.validation)"
    if len(equal) > 1:
        how += f"; {len(equal)} values are equally good, the first given was taken"
    return Grid(list(first), kept.by, measure.n, tried, chosen=equal[0], how=how)


def why_stopped(run: Path) -> str | None:
    """Why a health check ended the run in a folder, its first sentence; None where none did."""
    if not (run / "environment.json").exists():
        return None
    trained = read_run(run).environment.trained
    if trained is None or trained.exit_code != HealthError.exit_code:
        return None
    return trained.reason.split(". ")[0]


def _validated(value: Value, runs: Sequence[Path]) -> Tried:
    """The validations of the adapters that a value's runs kept, a seed each."""
    kept = [_kept(read_run(run)) for run in runs]
    scores = mean_over_seeds([measure.value for _, measure in kept if measure.value is not None])
    steps = [each.step for each, _ in kept]
    return Tried(value.name, value.label, value.overrides, steps=steps, **vars(scores))


def _kept(run: Run) -> tuple[Kept, Measure]:
    """The adapter that a run kept, and the validation that chose it."""
    kept = run.environment.kept or Kept(step=-1)
    measures = next((row.measures for row in run.validation if row.step == kept.step), {})
    if measures.get(kept.by, NOT_MEASURABLE).value is None:
        raise ConfigError(
            f"{run.path}: there is no validation of a kept adapter to choose by; nothing was "
            "trained, or environment.json or eval/validation.jsonl lacks it"
        )
    return kept, measures[kept.by]
