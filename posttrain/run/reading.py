"""Read a run folder, be it complete, unfinished, or with files missing or damaged."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from eval.gsm8k import ScoredReply
from eval.replies import PromptReply
from eval.rewarded import RewardedReply
from eval.stats import Difference, Measure
from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.base.files import jsonl_rows, model_fingerprint, read_object, rows_of
from posttrain.run.lenient import from_json
from posttrain.run.record import SIDES, Run, Scored
from posttrain.run.results import Environment, Exported, HealthEvent, Stage, Validated
from posttrain.settings.strict_yaml import read_yaml

TRACES = ("config.yaml", "environment.json", "metrics.jsonl", "eval")
T = TypeVar("T")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Several run folders; raises as `read_run`. Where two have the same name, as those of a
    repeat, all called seed-N, the folder around is part of the name, or else the complete path."""
    runs = [read_run(path) for path in paths]
    for parts in (1, 2, None):
        labels = [str(Path(*run.path.parts[-parts if parts else 0 :])) for run in runs]
        if len(set(labels)) == len({run.path for run in runs}):
            break
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def read_run(path: Path) -> Run:
    """A run folder; ConfigError if it holds nothing of a run."""
    path = path.resolve()
    if not any((path / name).exists() for name in TRACES):
        raise ConfigError(f"{path}: no run there (it holds none of {', '.join(TRACES)})")
    unreadable: list[str] = []

    def parsed(name: str, parse: Callable[[Path], T]) -> T | None:
        try:
            return parse(path / name) if (path / name).exists() else None
        except PostTrainError as error:  # it names the file
            unreadable.append(str(error))
        except (OSError, ValueError) as error:
            unreadable.append(f"{path / name}: {error}")
        return None

    def rows(name: str) -> list[dict[str, Any]] | None:
        damaged: list[int] = []
        read = parsed(name, lambda file: jsonl_rows(file, damaged))
        if damaged:
            what = "lines left out because they are not a JSON object"
            unreadable.append(f"{path / name}: {what}: {len(damaged)}")
        return read

    def replies(name: str, kind: type[Scored]) -> list[Scored]:
        read = rows(name) or []
        return parsed(name, lambda file: rows_of(kind, read, file)) or []

    exported = parsed("export.json", read_object) or {}
    health = rows("health.jsonl")
    run = Run(
        path=path,
        config=parsed("config.yaml", read_yaml) or {},
        environment=from_json(Environment, parsed("environment.json", read_object)),
        metrics=[*(rows("metrics.jsonl") or [])],
        samples=[*(rows("samples.jsonl") or [])],
        before=from_json(dict[str, Measure], parsed("eval/before.json", read_object)),
        after=from_json(dict[str, Measure], parsed("eval/after.json", read_object)),
        comparison=from_json(dict[str, Difference], parsed("eval/comparison.json", read_object)),
        health=None if health is None else [from_json(HealthEvent, row) for row in health],
        exports=from_json(dict[str, Exported], exported.get("exports")),
        adapter_16bit=from_json(Exported, exported.get("adapter_16bit")),
        data_report=parsed("data/report.json", read_object),
        validation=[from_json(Validated, row) for row in rows("eval/validation.jsonl") or []],
        unreadable=unreadable,
    )
    for side in SIDES:
        if run.method == "DPO":
            run.replies[side] = replies(f"eval/{side}_replies.jsonl", PromptReply)
        elif run.method:
            kind = RewardedReply if run.text_answers else ScoredReply
            run.replies[side] = replies(f"eval/{side}.jsonl", kind)
    return run


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
