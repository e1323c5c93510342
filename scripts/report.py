"""Draw the report of one or more runs again, and print their before/after table.

    ./run report outputs/grpo_demo outputs/dpo_demo
    ./run report outputs/first outputs/second --output comparison.html

Writes plots/*.png and report.html into each run folder, finished or not. Differences are paired
(the same problems or pairs before and after): a 95% bootstrap interval and an exact sign test,
which on right/wrong scores is McNemar's test.
"""

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from posttrain.base.paths import run_command, shown
from posttrain.base.process import run_main
from posttrain.report import read_runs, table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, draw none")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write a page that compares the runs"
    )
    arguments = parser.parse_args()
    if arguments.json:
        finished = read_runs(arguments.runs, finished=True)
        changes = {run.name: {n: asdict(c) for n, c in run.changes().items()} for run in finished}
        print(json.dumps(changes, indent=2))
        return
    from posttrain.report import page  # not before the arguments are known to be right

    runs = read_runs(arguments.runs)
    pages = [page.write_report(run.path) for run in runs]
    scored = [(run.name, run.changes()) for run in runs if run.changes()]
    if scored:
        print(table(scored), end="\n\n")
    for run in runs:
        if not run.finished:
            print(f"{run.name}: not scored yet, {run.steps} steps are logged")
    if arguments.output is not None:
        pages.append(page.write_comparison(arguments.runs, arguments.output))
    for written in pages:
        print(f"Report    {shown(written)}")


if __name__ == "__main__":
    run_main(main)
