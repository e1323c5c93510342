"""The earlier stages of a run that started from another run's adapter (model.adapter)."""

from dataclasses import replace
from pathlib import Path

from posttrain.base.files import model_fingerprint
from posttrain.run.reading import read_run
from posttrain.run.results import Stage


def chain_of(adapter: Path) -> list[Stage]:
    """The stages behind an adapter folder, the first one first. One that was not scored has no
    measure."""
    stage = Stage(adapter.name, model_fingerprint(adapter))
    of_checkpoint = adapter.parent.name == "checkpoints"
    folder = adapter.parent.parent if of_checkpoint else adapter.parent
    if not (of_checkpoint or adapter.name == "adapter") or not (folder / "config.yaml").is_file():
        return [stage]
    run = read_run(folder)
    trained, data = run.environment.trained, run.environment.data
    stage = replace(stage, name=folder.name, method=run.method.lower(), data=data)
    if of_checkpoint:  # which was not scored
        step = adapter.name.rpartition("-")[2]
        stage = replace(stage, steps=int(step) if step.isdigit() else None)
    else:
        stage = replace(stage, steps=trained.steps if trained else None)
        if (main := run.headline) is not None:
            change = run.changes()[main]
            stage = replace(stage, measure=main, before=change.before, after=change.after)
    return [*run.environment.stages, stage]
