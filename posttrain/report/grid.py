"""The values that a repeat tried: the table of their validation, and which was chosen, in words.

What is told is read from grid.json (posttrain/scoring/grid.py says what is in it).
"""

from collections.abc import Mapping
from typing import Any

from posttrain.base import terminal
from posttrain.report.seeds import spread
from posttrain.report.tables import ruled
from posttrain.run import measures

Found = Mapping[str, Any]
STOPPED = "stopped"  # in the place of a mean


def head(found: Found) -> list[str]:
    return ["Value", "Mean ± sd", *(f"Seed {seed}" for seed in found["seeds"]), "Kept step"]


def rows(found: Found) -> list[list[str]]:
    """Each value: mean and standard deviation, each seed's score, and the steps that were kept."""
    name, drawn = found["by"], []
    for row in found["values"]:
        if STOPPED in row:
            drawn.append([row["label"], STOPPED, *("" for _ in found["seeds"]), ""])
            continue
        steps = ", ".join(map(str, dict.fromkeys(row["steps"])))
        scores = (measures.plain(name, value) for value in row["values"])
        if row["name"] == found["chosen"]:
            steps += " (chosen)"
        drawn.append([row["label"], spread(name, row), *scores, steps])
    return drawn


def table(found: Found) -> str:
    """The rows as text, in lines that fit the terminal."""
    lines = ruled([tuple(map(str.lower, head(found))), *map(tuple, rows(found))])
    if not terminal.fits(lines):
        lines = [
            f"{label}: {mean}{f', {steps}' if steps else ''}"
            for label, mean, *_, steps in rows(found)
        ]
    title = f"{measures.label(found['by'])} in validation, {found['rows']} rows"
    return "\n".join([title, "", *(line.rstrip() for line in lines)])


def left_out(found: Found) -> list[str]:
    """Which values could not be trained with every seed, and why."""
    return [
        f"Left out: {row['label']}, {row[STOPPED]}." for row in found["values"] if STOPPED in row
    ]


def choice(found: Found) -> str:
    """Which value was chosen, how, and what that does not tell."""
    label = next(row["label"] for row in found["values"] if row["name"] == found["chosen"])
    return (
        f"Chosen: {label}, by {found['how']}. The test set had no part in it, and only this value "
        "is scored on it; that it was chosen flatters its validation, not its test scores."
    )
