"""A config trained with several seeds, and the values of a grid: their tables, and the choice."""

from collections.abc import Sequence
from pathlib import Path

from eval import figures
from eval.measures import Change, is_share, kind
from eval.seeds import SeedMean
from eval.stats import Measure
from posttrain.report import tables
from posttrain.report.rows import Cell, Column, Row, Table, as_text
from posttrain.report.verdict import Verdict, capital, over_seeds
from posttrain.run.record import Run
from posttrain.run.repeated import Grid, Repeated, Tried

STOPPED = "stopped"  # in the place of a mean
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
            before, after, difference = over.before, over.after, over.difference
            means[name] = Change(
                difference.mean,
                difference.low,
                difference.high,
                difference.p_value,
                alone.n,
                before=Measure(before.mean, alone.n, before.low, before.high),
                after=Measure(after.mean, alone.n, after.low, after.high),
            )
    return means


def verdict(repeated: Repeated, runs: Sequence[Run]) -> Verdict:
    """Did the config improve the headline measure over all seeds, and do the seeds agree?"""
    return over_seeds(repeated, changes(repeated, runs), runs)


def rows(repeated: Repeated, runs: Sequence[Run]) -> Table:
    """Each measure before and after, mean and standard deviation over seeds, and its change."""
    lines = []
    for name, change in changes(repeated, runs).items():
        over = repeated.measures[name]
        within = [figures.interval(name, s.low, s.high) for s in (over.before, over.after)]
        cells = (
            Cell(spread(name, over.before), small=(within[0],)),
            Cell(spread(name, over.after), small=(within[1],)),
            Cell(within[1]),
            tables.difference(name, change),
            Cell(figures.p_value(change.p_value)),
        )
        note = f"n = {change.n}, {len(runs)} seeds"
        lines.append(Row(kind(name).label, cells, figures.set_label(name), note=note))
    return Table(SEEDS, lines)


def table(repeated: Repeated, runs: Sequence[Run]) -> str:
    """The rows as text that fits the terminal."""
    title = f"{len(repeated.seeds)} seeds, mean ± standard deviation"
    return f"{title}\n\n{as_text([rows(repeated, runs)])}"


def by_seed(repeated: Repeated, runs: Sequence[Run]) -> list[list[str]]:
    """A measure and its value after training with each seed, a row a measure."""
    return [
        [
            capital(figures.label(name)),
            *(figures.plain(name, each) for each in repeated.measures[name].after.values),
        ]
        for name in changes(repeated, runs)
    ]


def spread(name: str, side: SeedMean | Tried) -> str:
    """`98.6% ± 0.6`: mean and standard deviation, in points where it is a share."""
    sd = side.sd or 0.0
    width = f"{100 * sd:.1f}" if is_share(name) else figures.plain(name, sd)
    return f"{figures.plain(name, side.mean)} ± {width}"


def grid_rows(grid: Grid) -> Table:
    """Each value: mean and standard deviation, each seed's score, and the steps that were kept."""
    columns = (
        Column("value"),
        Column("mean ± sd"),
        *(Column(f"seed {seed}", "left out") for seed in grid.seeds),
        Column("kept step"),
    )
    lines = []
    for value in grid.values:
        cells = [STOPPED, *("" for _ in grid.seeds), ""]
        if value.mean is not None:
            scores = (figures.plain(grid.by, score) for score in value.values)
            steps = ", ".join(map(str, dict.fromkeys(value.steps)))
            chosen = " (chosen)" * (value.name == grid.chosen)
            cells = [spread(grid.by, value), *scores, steps + chosen]
        lines.append(Row(value.label, tuple(map(Cell, cells))))
    return Table(columns, lines)


def grid_table(grid: Grid) -> str:
    """The values as text that fits the terminal, and those that could not be trained."""
    title = f"{figures.label(grid.by)} in validation, {grid.rows} rows"
    return "\n".join([title, "", as_text([grid_rows(grid)]), "", *left_out(grid)])


def left_out(grid: Grid) -> list[str]:
    """Which values could not be trained with every seed, and why."""
    return [f"Left out: {each.label}, {each.stopped}." for each in grid.values if each.stopped]


def choice(grid: Grid) -> str:
    """Which value was chosen, how, and what that does not show."""
    label = next(value.label for value in grid.values if value.name == grid.chosen)
    return (
        f"Chosen: {label}, by {grid.how}. The test set had no part in it, and only this value is "
        "scored on it; that it was chosen flatters its validation, not its test scores."
    )


def pages(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Where the page of each run is, from the folder of the repeat."""
    return [(run.path / "report.html").relative_to(folder.resolve()).as_posix() for run in runs]
