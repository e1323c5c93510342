"""The view of a training run on a terminal: a few lines that are drawn again once a second."""

import sys
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posttrain.base.progress import duration
from posttrain.train.view import TrainingView, sparkline

GAP = "   "
FAINT = "bright_black"


def show(view: TrainingView) -> Live:
    """Begin to draw the view; what is printed meanwhile appears above it."""
    console = Console(stderr=True)
    live = Live(
        get_renderable=lambda: render(view),
        console=console,
        refresh_per_second=1,
        redirect_stdout=sys.stdout.isatty(),
        vertical_overflow="visible",
    )
    try:
        live.start(refresh=True)
    finally:
        console.show_cursor()  # a second Ctrl-C ends the process with no chance to bring it back
    return live


def render(view: TrainingView) -> RenderableType:
    """The view as it is now: bar, metrics, times and machine, last health line."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    drawn = ProgressBar(total=view.total, completed=view.step, style=FAINT, finished_style="green")
    bar.add_row(Text("training", style="bold"), drawn, Text(view.count(), style="bold"))
    lines: list[RenderableType] = [bar]
    metrics = [Text.assemble((f"{label} ", FAINT), value) for label, value in view.metrics()]
    if metrics and len(view.history) > 1:
        metrics[0].append(f" {sparkline(list(view.history))}", style="cyan")
    lines += [_Row(metrics)] if metrics else []
    times = view.times() if view.step < view.total else f"{duration(view.elapsed())} in all"
    lines.append(_Row([Text(times), *(Text(part, style=FAINT) for part in view.machine())]))
    if view.note:
        lines.append(Text(view.note, style="yellow", overflow="ellipsis", no_wrap=True))
    return Group(*lines)


class _Row:
    """Parts side by side; where they do not fit, the line breaks between two parts."""

    def __init__(self, parts: Sequence[Text]) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(no_wrap=True, overflow="ellipsis")
        for part in self.parts:
            if line and line.cell_len + len(GAP) + part.cell_len > options.max_width:
                yield line
                line = Text(no_wrap=True, overflow="ellipsis")
            line.append(GAP if line else "").append_text(part)
        yield line
