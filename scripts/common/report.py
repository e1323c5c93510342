"""What a run tells the user at its end: the before/after table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import ConfigError

LABELS = {
    "strict": "strict accuracy",
    "tagged": "tagged accuracy",
    "lenient": "lenient accuracy",
    "format_rate": "format rate",
    "truncated_rate": "truncated replies",
    "reward_accuracy": "preference accuracy",
    "reward_margin": "reward margin",
    "french_share": "replies in French",
    "mean_tokens": "mean tokens",
    "majority_vote": "majority vote",
}
NOT_A_SHARE = {"reward_margin", "mean_tokens"}


def read_run(run: Path) -> dict[str, dict[str, Any]]:
    """A run's measures: `{measure: {before, after, difference, low, high, p_value, n}}`.

    Raises:
        ConfigError: the folder holds no finished evaluation.
    """
    folder = run / "eval"
    try:
        before, after, comparison = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("before", "after", "comparison")
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{run}: no finished run there ({error.filename} is missing)") from None
    return {
        name: {"before": before[name], "after": after[name], **comparison[name]}
        for name in comparison
    }


def comparison_table(runs: Sequence[Path]) -> str:
    """One table over all runs: each measure before and after, with 95% intervals and p-value."""
    return table([(run.resolve().name, read_run(run)) for run in runs])


def table(comparisons: Sequence[tuple[str, dict[str, dict[str, Any]]]]) -> str:
    """Named comparisons as aligned text, a line a measure."""
    return _align(table_rows(comparisons))


def table_rows(
    comparisons: Sequence[tuple[str, dict[str, dict[str, Any]]]],
) -> list[tuple[str, ...]]:
    """Named comparisons as cells of text: a head, then a row a measure."""
    rows: list[tuple[str, ...]] = [
        ("run", "measure", "before", "after", "change (95% interval)", "p-value", "n")
    ]
    for label, comparison in comparisons:
        for number, (name, values) in enumerate(comparison.items()):
            rows.append(
                (
                    label if number == 0 else "",
                    LABELS[name],
                    _value(name, values["before"]),
                    _value(name, values["after"]),
                    _change(name, values),
                    _p_value(values["p_value"]),
                    str(values["n"]),
                )
            )
    return rows


def summary_table(where: Path, measures: dict[str, dict[str, Any]]) -> str:
    """The measures of one evaluation as aligned text."""
    rows = [("measure", "value (95% interval)", "n")]
    for name, measure in measures.items():
        rows.append((LABELS.get(name, name), _value(name, measure), str(measure["n"])))
    return f"\n{where}\n{_align(rows)}"


def _align(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def already_finished(run: Path) -> int:
    """Say that a run is done and show its table; returns the exit code."""
    print(f"{run} is a finished run; --resume never trains it again\n\n{comparison_table([run])}")
    return 0


def _value(name: str, measure: dict[str, Any]) -> str:
    value, low, high = measure["value"], measure["low"], measure["high"]
    if name in NOT_A_SHARE:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def _change(name: str, values: dict[str, Any]) -> str:
    parts = [values["difference"], values["low"], values["high"]]
    if name in NOT_A_SHARE:
        change, low, high = (f"{part:+.2f}" for part in parts)
    else:
        change, low, high = (f"{100 * part:+.1f}" for part in parts)
        change += " points"
    return f"{change} [{low}, {high}]"


def _p_value(p: float) -> str:
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"
