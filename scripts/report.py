"""Draw the report of one or more runs, and print their before/after table.

    ./run report outputs/grpo_demo outputs/dpo_demo
    ./run report outputs/first outputs/second --output comparison.html

Writes plots/*.png, report.html and, once it is trained, the model card (README.md) into each run
folder. Training ends with this command. Differences are paired (the same problems or pairs before
and after): a 95% bootstrap interval and an exact sign test, which on right/wrong scores is
McNemar's test.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base import flags
from posttrain.base.errors import ConfigError
from posttrain.base.paths import shown
from posttrain.base.process import run_main
from posttrain.report import next_steps, tables
from posttrain.report.redraw import redraw
from posttrain.run.folder import RunFolder
from posttrain.run.record import Run, read_runs


def main(argv: list[str] | None = None) -> int:
    """Report; returns 1 if a page could not be drawn."""
    args = parse(argv)
    runs = read_runs(args.runs)
    if args.json:
        if unfinished := next((run for run in runs if not run.changes()), None):
            why = " ".join(["no scores there to compare.", *unfinished.unreadable])
            raise ConfigError(f"{unfinished.path}: {why}")
        changes = {run.name: {n: asdict(c) for n, c in run.changes().items()} for run in runs}
        print(json.dumps(changes, indent=2))
        return 0
    pages = [redraw(run.path) for run in runs]
    scored = [tables.compared(run.changes(), run.name) for run in runs if run.changes()]
    if scored:
        print(tables.as_text(scored), end="\n\n")
    for run in runs:
        if not run.finished:
            print(f"{run.name}: {not_scored(run)}")
    if args.output is not None:
        from posttrain.report import page  # not before the arguments are known to be right

        pages.append(page.write_comparison(args.runs, args.output))
    adapter = args.runs[0] / "adapter"
    if len(runs) == 1 and adapter.is_dir():
        print(f"Adapter   {shown(adapter)}")
    for written in filter(None, pages):
        print(f"Report    {shown(written)}")
    if len(runs) == 1 and runs[0].finished:
        print(next_steps.next_commands(args.runs[0], runs[0].config))
    return int(None in pages)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser("report", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    add("--json", action="store_true", help="print the figures as JSON, draw none")
    add("--output", type=Path, metavar="FILE", help="also write a page that compares the runs")
    return parser.parse_args(argv)


def not_scored(run: Run) -> str:
    """Why a run has no table."""
    if not RunFolder(run.path).trained:
        return f"not scored yet, {run.steps} steps are logged"
    return (
        "not scored on the held-out data, as run.score is false; the same command with "
        "run.score=true scores it, without training again"
    )


if __name__ == "__main__":
    run_main(main)
