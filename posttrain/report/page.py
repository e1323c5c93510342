"""The report page: one HTML file that asks for nothing, on a phone or a screen, light or dark.

Importing this loads matplotlib and jinja2: only what draws may import it.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from posttrain.base.files import write_bytes, write_text
from posttrain.base.paths import ROOT
from posttrain.report import (
    differences,
    drawing,
    grid,
    grid_plot,
    plots,
    samples,
    seeds,
    story,
    taken_home,
)
from posttrain.report.verdict import verdict
from posttrain.run.record import Record, read_run, read_runs, section

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
NO_BREAK = "\N{NO-BREAK SPACE}"
SPREAD = f"{NO_BREAK}±{NO_BREAK}"


def breakable(text: str) -> Markup:
    """A text whose lines break between the parts of a path or name before they break anywhere."""
    return Markup(re.sub(r"(?<=\w[/_])(?=\w)|(?<=\w)(?=\.[a-z])", "<wbr>", str(escape(text))))


PAGES.filters["breakable"] = breakable


def write_report(run: Path, files: bool = True) -> Path:
    """Draw report.html of a run folder, finished or not, and with `files` plots/*.png.

    Returns the page.

    Raises:
        ConfigError: there is no trace of a run in it.
    """
    found = read_run(run)
    pictures = plots.plots(found)
    (found.path / "plots").mkdir(exist_ok=True)
    for plot in pictures if files else ():
        write_bytes(found.path / "plots" / f"{plot.name}.png", drawing.render_png(plot))
    page = found.path / "report.html"
    write_text(page, render(found, pictures))
    return page


def write_comparison(runs: Sequence[Path], page: Path) -> Path:
    """Write a page that compares several runs."""
    records = read_runs(runs)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, render_comparison(records))
    return page


def write_seeds(
    folder: Path, found: seeds.Found, runs: Sequence[Path], tried: grid.Found | None = None
) -> Path:
    """Write report.html of a config that was trained with several seeds; `found` is its
    seeds.json, `runs` are its runs in the same order, `tried` is its grid.json."""
    records = [read_run(run) for run in runs]
    text = PAGES.get_template("seeds.html.j2").render(
        name=folder.name,
        seeds=found["seeds"],
        records=records,
        pages=[(run / "report.html").relative_to(folder).as_posix() for run in runs],
        grid=tried and _grid(tried),
        verdict=seeds.verdict(found, records),
        facts=story.facts(records[0])[:3],  # the model and its data, the same in all
        changes=seeds.lines_of(found, records),
        by_seed=seeds.by_seed(found, records),
        pictures=[_picture(plot) for plot in plots.compared(records)],
    )
    write_text(folder / "report.html", text)
    return folder / "report.html"


def _grid(tried: grid.Found) -> dict[str, Any]:
    return {
        "choice": grid.choice(tried),
        "left_out": grid.left_out(tried),
        "head": [cell.replace(" ", NO_BREAK) for cell in grid.head(tried)],
        "rows": [[cell.replace(" ± ", SPREAD) for cell in row] for row in grid.rows(tried)],
        "picture": _picture(grid_plot.validation_by_value(tried)),
    }


def render(found: Record, pictures: Sequence[drawing.Plot]) -> str:
    """The page of one run."""
    shown = {plot.name: _picture(plot) for plot in pictures}
    replies, rights = samples.pairs(found)
    return PAGES.get_template("page.html.j2").render(
        run=found,
        verdict=verdict(found),
        finished=found.finished,
        facts=story.facts(found),
        changes=story.changes(found),
        files=taken_home.lines(found),
        file_columns=taken_home.columns(found),
        no_file_lost=taken_home.no_file_lost(found),
        file_words=taken_home.words(found),
        scores=shown.pop("scores", None),
        pictures=list(shown.values()),
        replies=replies,
        flips=story.flips(found, rights) if rights else [],
        rollouts=samples.rollouts(found),
        question=_chat(found.path),
        data=story.data_warnings(found),
        health=story.health(found),
        exports=story.exports(found),
        settings=differences.from_defaults(found),
        changed=_changed_arguments(found),
        environment=_environment(found.environment),
    )


def render_comparison(records: Sequence[Record]) -> str:
    """The page that compares runs."""
    return PAGES.get_template("comparison.html.j2").render(
        runs=[
            {
                "record": found,
                "verdict": verdict(found),
                "facts": story.facts(found),
                "changes": story.changes(found),
            }
            for found in records
        ],
        pictures=[_picture(plot) for plot in plots.compared(records)],
        settings=differences.between(records),
    )


def _picture(plot: drawing.Plot) -> dict[str, Any]:
    # What matplotlib wrote is its own markup, with every text in it escaped.
    return {"title": plot.title, "about": plot.about, "svg": Markup(drawing.render_svg(plot))}


def _chat(run: Path) -> str | None:
    """The command that talks to the run, as it is typed in the project; None without an adapter.

    Of a run elsewhere only the name is told: the page may be shown around.
    """
    if not (run / "adapter" / "adapter_config.json").is_file():
        return None
    run = run.absolute()
    known = run.relative_to(ROOT) if run.is_relative_to(ROOT) else Path(run.name)
    return f"./run chat {shlex.quote(str(known))}"


def _changed_arguments(found: Record) -> list[tuple[str, str, str]]:
    changed = section(found.environment, "changed_arguments")
    return [
        (name, json.dumps(values.get("asked")), json.dumps(values.get("used")))
        for name, values in changed.items()
        if isinstance(values, dict)
    ]


def _environment(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Where and with what it ran, a line each."""
    command = values.get("command")
    lines = {
        "started": values.get("started"),
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "commit": values.get("git"),
        "data fingerprint": values.get("data"),
        "platform": values.get("platform"),
        "Python": values.get("python"),
        **section(values, "versions"),
    }
    return [(name, str(value)) for name, value in lines.items() if value]
