"""Print the before/after table of one or more runs.

    ./run report outputs/grpo_demo outputs/dpo_demo

Differences are paired (the same problems or pairs before and after): a 95% bootstrap interval and
an exact sign test, which on right/wrong scores is McNemar's test.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.common.errors import run_main
from scripts.common.report import comparison_table, read_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if arguments.json:
        print(json.dumps({run.name: read_run(run) for run in arguments.runs}, indent=2))
    else:
        print(comparison_table(arguments.runs))


if __name__ == "__main__":
    run_main(main)
