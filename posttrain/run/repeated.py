"""What a repeat over seeds writes: seeds.json, and with --grid grid.json."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eval.seeds import SeedDifference, SeedMean
from posttrain.run.lenient import from_json


@dataclass(frozen=True)
class SeedChange:
    """A measure over seeds: each side's mean and t interval, and the difference, whose interval is
    over seeds and questions."""

    before: SeedMean
    after: SeedMean
    difference: SeedDifference


@dataclass(frozen=True)
class Repeated:
    """seeds.json."""

    seeds: list[int]
    measures: dict[str, SeedChange]


@dataclass(frozen=True)
class Tried:
    """A value of a grid, and the validation of its runs unless one was stopped."""

    name: str = ""
    label: str = ""
    overrides: list[str] = field(default_factory=list)
    stopped: str = ""
    """Why a health check ended one of its runs."""
    steps: list[int] = field(default_factory=list)
    """Those whose adapters were kept, a seed each."""
    values: list[float] = field(default_factory=list)
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Grid:
    """grid.json: the values that were tried, and which was chosen by validation."""

    seeds: list[int] = field(default_factory=list)
    by: str = ""
    """The measure that decided."""
    rows: int = 0
    """Rows that were validated on."""
    values: list[Tried] = field(default_factory=list)
    chosen: str = ""
    """The name of a value."""
    how: str = ""

    def as_json(self) -> dict[str, object]:
        """As it stands in the file: a value has either its scores or why it was stopped."""
        unset: tuple[object, ...] = (None, "", [])
        values = [{k: v for k, v in asdict(row).items() if v not in unset} for row in self.values]
        return {**asdict(self), "values": values}


def read_grid(path: Path) -> Grid:
    """The grid.json of a repeat."""
    return from_json(Grid, json.loads(path.read_text(encoding="utf-8")))
