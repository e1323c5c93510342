"""The earlier stages of a run that started from another run's adapter (model.adapter)."""

from dataclasses import asdict, replace
from pathlib import Path

from eval.stats import Measure
from posttrain.base.files import model_fingerprint
from posttrain.run.reading import read_run
from posttrain.run.results import Stage


def chain_of(adapter: Path) -> list[dict[str, object]]:
    """The stages behind an adapter folder, the first one first, as environment.json has them (see
    `Stage`). One that was not scored has no measure."""
    stages = [*_stages(adapter)]
    unset: tuple[object, ...] = (None, "", asdict(Measure()))
    return [{k: v for k, v in asdict(stage).items() if v not in unset} for stage in stages]


def _stages(adapter: Path) -> list[Stage]:
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
