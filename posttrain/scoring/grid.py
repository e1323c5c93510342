"""Which of several values a config is best trained with, by validation alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.measures import kind
from eval.seeds import mean_over_seeds
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
    by, rows = _decided(read_run(next(iter(first.values()))))
    sign = -1 if kind(by).better < 0 else 1
    means = {row.name: sign * row.mean for row in tried if row.mean is not None}
    equal = [name for name, mean in means.items() if mean > max(means.values()) - ROUNDING]
    how = f"the {'lowest' if sign < 0 else 'highest'} mean over seeds on rows set aside from the "
    how += "training data (data.validation)"
    if len(equal) > 1:
        how += f"; {len(equal)} values are equally good, the first given was taken"
    return Grid(list(first), by, rows, tried, chosen=equal[0], how=how)


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
    scores = mean_over_seeds([score for _, score in kept])
    steps = [each.step for each, _ in kept]
    return Tried(value.name, value.label, value.overrides, steps=steps, **vars(scores))


def _kept(run: Run) -> tuple[Kept, float]:
    """The adapter that a run kept, and the validation that chose it."""
    if run.environment.kept is None:
        raise ConfigError(
            f"{run.path}: nothing was trained, so there is no validation to choose by"
        )
    if run.environment.kept.value is None:
        raise ConfigError(
            f"{run.path}/environment.json: the validation of the kept adapter is missing"
        )
    return run.environment.kept, run.environment.kept.value


def _decided(run: Run) -> tuple[str, int]:
    """The measure that decided which adapter a run kept, and the rows that it was taken on."""
    kept, _ = _kept(run)
    row = next((row for row in run.validation if row.step == kept.step), None)
    if row is None or kept.by not in row.measures:
        raise ConfigError(
            f"{run.path}/eval/validation.jsonl: the validation of step {kept.step} is missing"
        )
    return kept.by, row.measures[kept.by].n
