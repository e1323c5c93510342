"""The earlier stages of a run, a line each."""

from eval import figures
from posttrain.run.record import Run
from posttrain.run.results import Stage


def lines(run: Run) -> list[str]:
    """One line for each earlier stage: `warm_up: SFT, 40 steps; strict accuracy 1% -> 20%`."""
    return [_line(stage) for stage in run.environment.stages]


def _line(stage: Stage) -> str:
    if not stage.method:
        return f"{stage.name}: an adapter without its run (fingerprint {stage.adapter[:12]})"
    trained = f"{stage.name}: {stage.method.upper()}, {stage.steps} steps"
    if not (main := stage.measure):
        return trained
    before, after = (figures.plain(main, side.value) for side in (stage.before, stage.after))
    return f"{trained}; {figures.label(main)} {before} -> {after}"
