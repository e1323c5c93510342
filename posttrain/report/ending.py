"""The last lines of a run: its table, where its page is, and the commands that come next."""

from pathlib import Path

from posttrain.base.paths import shown
from posttrain.report.live import draw
from posttrain.report.next_steps import next_commands
from posttrain.report.tables import comparison_table


def finish(run: Path) -> None:
    """Draw the page of a finished run, then print its table, where things are, and what is next."""
    page = draw(run)
    print(f"\n{comparison_table([run])}\n\nAdapter   {shown(run / 'adapter')}")
    if page is not None:
        print(f"Report    {shown(page)}")
    print(next_commands(run))


def already_finished(run: Path) -> int:
    """Say that a run is done and show its table; returns the exit code."""
    print(
        f'{run} is a finished run; nothing to do. "--resume never" trains it from the start '
        f"(the old folder is moved aside).\n\n{comparison_table([run])}"
    )
    print(next_commands(run))
    return 0
