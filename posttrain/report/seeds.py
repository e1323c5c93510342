"""A config trained with several seeds: table and verdict."""

from collections.abc import Sequence

from eval import figures
from eval.measures import Change, direction, is_share, kind
from eval.seeds import Repeated, SeedMean
from eval.stats import Measure
from posttrain.report import tables
from posttrain.report.tables import Cell, Column, Row, Table, as_text
from posttrain.report.verdict import WORDS, Verdict, capital, judged, losses
from posttrain.run.record import Run

SEEDS = (
    Column("measure"),
    Column("before"),
    Column("after"),
    Column("95% over seeds", page=False),
    Column("change (95%, seeds and questions)"),
    Column("p-value", page=False),
)


def changes(repeated: Repeated, runs: Sequence[Run]) -> dict[str, Change]:
    """The means over seeds and their difference as one run's changes, the headline first."""
    means = {}
    for name, alone in runs[0].changes().items():
        if over := repeated.measures.get(name):
            moved = over.difference
            means[name] = Change(
                *(moved.mean, moved.low, moved.high, moved.p_value, alone.n),
                before=Measure(over.before.mean, alone.n, over.before.low, over.before.high),
                after=Measure(over.after.mean, alone.n, over.after.low, over.after.high),
            )
    return means


def verdict(repeated: Repeated, runs: Sequence[Run]) -> Verdict:
    """Did the config improve the headline measure over all seeds, and do the seeds agree?"""
    over = changes(repeated, runs)
    name, change = next(iter(over.items()))
    remarks = [_agreement(name, change, repeated.seeds, runs), *losses(name, over)]
    return judged(name, change, remarks, seeds=len(runs))


def _agreement(name: str, change: Change, seeds: Sequence[int], runs: Sequence[Run]) -> str:
    """Whether each seed alone gives the same verdict on a measure; and how far they differ."""
    alone = [run.changes()[name] for run in runs]
    seeds_of: dict[str, list[int]] = {}
    for seed, each in zip(seeds, alone, strict=True):
        seeds_of.setdefault(WORDS[direction(name, each)], []).append(seed)
    moved = [each.difference or 0.0 for each in alone]
    high = figures.moved(name, max(moved))
    ends = high if min(moved) == max(moved) else f"{figures.signed(name, min(moved))} to {high}"
    if len(seeds_of) > 1:
        parts = [
            f"{word} with seed{'s' * (len(some) > 1)} {', '.join(map(str, some))}"
            for word, some in seeds_of.items()
        ]
        return f"The seeds disagree, each taken alone: {'; '.join(parts)} ({ends})."
    (word,) = seeds_of
    if word == WORDS[direction(name, change)]:
        return f"The seeds agree, each taken alone: {word} ({ends})."
    return (
        f"Each seed taken alone gives {word}, but they differ so much ({ends}) that {len(runs)} of "
        "them do not show what another seed would give; more seeds may."
    )


def rows(repeated: Repeated, runs: Sequence[Run]) -> Table:
    """Each measure before and after, mean and standard deviation over seeds, and its change."""
    lines = []
    for name, change in changes(repeated, runs).items():
        over = repeated.measures[name]
        before, after = (
            Cell(spread(name, side), small=(figures.interval(name, side.low, side.high),))
            for side in (over.before, over.after)
        )
        moved, p_value = tables.difference(name, change), Cell(figures.p_value(change.p_value))
        cells = (before, after, Cell(after.small[0]), moved, p_value)
        note = f"n = {change.n}, {len(runs)} seeds"
        lines.append(Row(kind(name).label, cells, figures.set_label(name), change.n, note))
    return Table(SEEDS, lines)


def table(repeated: Repeated, runs: Sequence[Run]) -> str:
    """The rows as text that fits the terminal."""
    title = f"{len(repeated.seeds)} seeds, mean ± standard deviation"
    return f"{title}\n\n{as_text([rows(repeated, runs)])}"


def by_seed(repeated: Repeated, runs: Sequence[Run]) -> list[list[str]]:
    """A measure and its value after training with each seed, a row a measure."""
    values = {name: repeated.measures[name].after.values for name in changes(repeated, runs)}
    return [
        [capital(figures.label(name)), *(figures.plain(name, each) for each in values[name])]
        for name in values
    ]


def spread(name: str, side: SeedMean) -> str:
    """`98.6% ± 0.6`: mean and standard deviation, in points where it is a share."""
    width = f"{100 * side.sd:.1f}" if is_share(name) else figures.plain(name, side.sd)
    return f"{figures.plain(name, side.mean)} ± {width}"
