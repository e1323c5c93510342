"""Which of several values a config is best trained with, by validation alone."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.seeds import mean_over_seeds
from posttrain.base.errors import ConfigError, HealthError
from posttrain.run.measures import better
from posttrain.run.record import read_run
from posttrain.scoring.seeds import check_same_data
from posttrain.settings.grid import Value

ROUNDING = 1e-9  # means that are no further apart are equal


def choose(
    values: Sequence[Value], runs: Mapping[str, Mapping[int, Path]], stopped: Mapping[str, str]
) -> dict[str, Any]:
    """What is in grid.json: `{"seeds", "by", "rows", "values", "chosen", "how"}`.

    `runs` are the trained runs of a value's name by seed; `stopped` says of the other values why a
    health check ended one of their runs. Each of `values` has its `name`, `label` and `overrides`,
    and either `stopped` or, of the steps that were kept, `steps` and what mean_over_seeds gives of
    their validation.

    Raises:
        ConfigError: a run has no validation, or was trained or validated on other data.
        HealthError: no value could be trained with every seed.
    """
    if not runs:
        raise HealthError(f"no value of --grid could be trained: {'; '.join(stopped.values())}")
    check_same_data([run for of_value in runs.values() for run in of_value.values()])
    rows: list[dict[str, Any]] = []
    by, validated = "", 0
    for value in values:
        row: dict[str, Any] = {**vars(value), "name": value.name, "label": value.label}
        if value.name in stopped:
            rows.append(row | {"stopped": stopped[value.name]})
            continue
        kept = [_kept(run) for run in runs[value.name].values()]
        by, validated = kept[0]["by"], kept[0]["n"]
        scores = mean_over_seeds([each["value"] for each in kept])
        rows.append(row | {"steps": [each["step"] for each in kept], **scores})
    sign = -1 if better(by) < 0 else 1
    best = max(sign * row["mean"] for row in rows if "mean" in row)
    equal = [row for row in rows if sign * row.get("mean", -sign * math.inf) > best - ROUNDING]
    first = next(iter(runs.values()))
    how = f"the {'lowest' if sign < 0 else 'highest'} mean over seeds on rows set aside from the "
    how += "training data (data.validation)"
    if len(equal) > 1:
        how += f"; {len(equal)} values are equally good, the first given was taken"
    return {
        "seeds": list(first),
        "by": by,
        "rows": validated,
        "values": rows,
        "chosen": equal[0]["name"],
        "how": how,
    }


def why_stopped(run: Path) -> str | None:
    """Why a health check ended the run in a folder, its first sentence; None where none did."""
    path = run / "environment.json"
    if not path.exists():
        return None
    trained = json.loads(path.read_text(encoding="utf-8")).get("trained") or {}
    stopped = trained.get("exit_code") == HealthError.exit_code
    return str(trained.get("reason")).split(". ")[0] if stopped else None


def _kept(run: Path) -> dict[str, Any]:
    """`{"step", "by", "value", "n"}` of the adapter that a run kept, from `n` validation rows."""
    record = read_run(run)
    if not record.kept:
        raise ConfigError(f"{run}: nothing was trained, so there is no validation to choose by")
    step = record.kept["step"]
    row = next((row for row in record.validation if row["step"] == step), None)
    if row is None:
        raise ConfigError(f"{run}/eval/validation.jsonl: the validation of step {step} is missing")
    return {**record.kept, "n": row["measures"][record.kept["by"]]["n"]}
