"""The report page: one HTML file that loads nothing, on a phone or a screen, light or dark.

Importing this loads matplotlib and jinja2: only what draws may import it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from eval.seeds import Repeated
from posttrain.base.files import write_bytes, write_text
from posttrain.report import (
    differences,
    drawing,
    export_scores,
    export_words,
    page_data,
    plots,
    samples,
    seeds,
)
from posttrain.report.verdict import capital, verdict
from posttrain.run.record import Run, read_run, read_runs

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def breakable(text: str) -> Markup:
    """A text whose lines break between the parts of a path or name before they break anywhere."""
    return Markup(re.sub(r"(?<=\w[/_])(?=\w)|(?<=\w)(?=\.[a-z])", "<wbr>", str(escape(text))))


PAGES.filters |= {
    "breakable": breakable,
    "capital": capital,
    "size": export_words.size,
    # What matplotlib wrote is its own markup, with every text in it escaped.
    "svg": lambda plot: Markup(drawing.render_svg(plot)),
}
PAGES.globals |= {
    "data": page_data,
    "check_cells": export_words.check_cells,
    "differences": differences,
    "export_scores": export_scores,
    "samples": samples,
    "seeds": seeds,
    "verdict_on": verdict,
}


def write_report(path: Path) -> Path:
    """Draw report.html and plots/*.png of a run folder, finished or not; returns the page. Raises
    ConfigError if it holds nothing of a run."""
    run = read_run(path)
    drawn = plots.plots(run)
    (run.path / "plots").mkdir(exist_ok=True)
    for plot in drawn:
        write_bytes(run.path / "plots" / f"{plot.name}.png", drawing.render_png(plot))
    return _write(run.path / "report.html", render(run, drawn))


def write_comparison(paths: Sequence[Path], page: Path) -> Path:
    """Write a page that compares several runs."""
    runs = read_runs(paths)
    page.parent.mkdir(parents=True, exist_ok=True)
    template = PAGES.get_template("comparison.html.j2")
    return _write(page, template.render(runs=runs, pictures=plots.compared(runs)))


def write_seeds(folder: Path, repeated: Repeated, paths: Sequence[Path]) -> Path:
    """Write report.html of a config that was trained with several seeds; `paths` are its runs, in
    the order of the seeds."""
    runs = [read_run(path) for path in paths]
    text = PAGES.get_template("seeds.html.j2").render(
        name=folder.name,
        repeated=repeated,
        runs=runs,
        pages=[run.path.relative_to(folder.resolve()).as_posix() for run in runs],
        pictures=plots.compared(runs),
    )
    return _write(folder / "report.html", text)


def render(run: Run, drawn: Sequence[drawing.Plot]) -> str:
    """The page of one run."""
    pictures = {plot.name: plot for plot in drawn}
    scores = pictures.pop("scores", None)
    template = PAGES.get_template("page.html.j2")
    return template.render(run=run, scores=scores, pictures=list(pictures.values()))


def _write(page: Path, text: str) -> Path:
    write_text(page, text)
    return page
