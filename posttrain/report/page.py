"""The report page: one HTML file that loads nothing, on a phone or a screen, light or dark.

Importing this loads matplotlib and jinja2: only what draws may import it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from posttrain.base.files import write_bytes, write_text
from posttrain.report import (
    differences,
    drawing,
    export_scores,
    page_data,
    plots,
    samples,
    score_plots,
    seeds,
)
from posttrain.report.verdict import capital, verdict
from posttrain.run.reading import read_run, read_runs
from posttrain.run.record import Run
from posttrain.run.repeated import Grid, Repeated

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
NO_BREAK = "\N{NO-BREAK SPACE}"


def breakable(text: str) -> Markup:
    """A text whose lines break between the parts of a path or name before they break anywhere."""
    return Markup(re.sub(r"(?<=\w[/_])(?=\w)|(?<=\w)(?=\.[a-z])", "<wbr>", str(escape(text))))


PAGES.filters |= {"breakable": breakable, "capital": capital}


def write_report(path: Path, files: bool = True) -> Path:
    """Draw report.html of a run folder, finished or not, and with `files` plots/*.png.

    Returns the page.

    Raises:
        ConfigError: there is no trace of a run in it.
    """
    run = read_run(path)
    drawn = plots.plots(run)
    (run.path / "plots").mkdir(exist_ok=True)
    for plot in drawn if files else ():
        write_bytes(run.path / "plots" / f"{plot.name}.png", drawing.render_png(plot))
    page = run.path / "report.html"
    write_text(page, render(run, drawn))
    return page


def write_comparison(paths: Sequence[Path], page: Path) -> Path:
    """Write a page that compares several runs."""
    runs = read_runs(paths)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, render_comparison(runs))
    return page


def write_seeds(
    folder: Path, repeated: Repeated, paths: Sequence[Path], grid: Grid | None = None
) -> Path:
    """Write report.html of a config that was trained with several seeds; `paths` are its runs, in
    the order of the seeds."""
    runs = [read_run(path) for path in paths]
    text = PAGES.get_template("seeds.html.j2").render(
        name=folder.name,
        seeds=repeated.seeds,
        runs=runs,
        pages=seeds.pages(folder, runs),
        grid=grid and _grid(grid),
        verdict=seeds.verdict(repeated, runs),
        facts=page_data.facts(runs[0])[:3],  # the model and its data, the same in all
        changes=seeds.rows(repeated, runs),
        by_seed=seeds.by_seed(repeated, runs),
        pictures=[_picture(plot) for plot in plots.compared(runs)],
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def _grid(grid: Grid) -> dict[str, object]:
    table = seeds.grid_rows(grid)
    spread = f"{NO_BREAK}±{NO_BREAK}"
    return {
        "choice": seeds.choice(grid),
        "left_out": seeds.left_out(grid),
        "head": [capital(column.head).replace(" ", NO_BREAK) for column in table.columns],
        "rows": [
            [row.label, *(cell.text.replace(" ± ", spread) for cell in row.cells)]
            for row in table.rows
        ],
        "picture": _picture(score_plots.validation_by_value(grid)),
    }


def render(run: Run, drawn: Sequence[drawing.Plot]) -> str:
    """The page of one run."""
    pictures = {plot.name: _picture(plot) for plot in drawn}
    replies, rights = samples.pairs(run)
    return PAGES.get_template("page.html.j2").render(
        run=run,
        verdict=verdict(run),
        facts=page_data.facts(run),
        changes=page_data.changes(run),
        files=export_scores.rows(run),
        files_title=export_scores.TITLE,
        no_file_lost=export_scores.no_file_lost(run),
        file_remarks=export_scores.remarks(run),
        scores=pictures.pop("scores", None),
        pictures=list(pictures.values()),
        replies=replies,
        flips=samples.flips(run, rights) if rights else [],
        rollouts=samples.rollouts(run),
        chat=page_data.chat_command(run),
        data=page_data.data_warnings(run),
        health=page_data.health(run),
        exports=page_data.exports(run),
        settings=differences.from_defaults(run),
        changed=page_data.changed_arguments(run),
        environment=page_data.environment(run),
    )


def render_comparison(runs: Sequence[Run]) -> str:
    """The page that compares runs."""
    shown = [(run, verdict(run), page_data.facts(run), page_data.changes(run)) for run in runs]
    return PAGES.get_template("comparison.html.j2").render(
        runs=shown,
        pictures=[_picture(plot) for plot in plots.compared(runs)],
        settings=differences.between(runs),
    )


def _picture(plot: drawing.Plot) -> Mapping[str, str]:
    # What matplotlib wrote is its own markup, with every text in it escaped.
    return {"title": plot.title, "about": plot.about, "svg": Markup(drawing.render_svg(plot))}
