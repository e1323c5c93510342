"""What a repeat over seeds writes: seeds.json."""

from dataclasses import dataclass

from eval.seeds import SeedDifference, SeedMean


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
