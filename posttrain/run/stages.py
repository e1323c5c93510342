"""The earlier stages of a run that started from another run's adapter (model.adapter)."""

from pathlib import Path

from posttrain.base.files import model_fingerprint
from posttrain.run.record import Record, Row, read_run, section


def chain_of(adapter: Path) -> list[Row]:
    """The stages behind an adapter folder, the first one first, each as environment.json has it:
    `{"name", "method", "steps", "data", "adapter", "measure", "before", "after"}`.

    `data` and `adapter` are fingerprints, `measure` the headline of the stage's method. An adapter
    outside of a run folder is one stage of which only name and fingerprint are known.
    """
    stage: Row = {"name": adapter.name, "adapter": model_fingerprint(adapter)}
    of_checkpoint = adapter.parent.name == "checkpoints"
    run = adapter.parent.parent if of_checkpoint else adapter.parent
    if not (of_checkpoint or adapter.name == "adapter") or not (run / "config.yaml").is_file():
        return [stage]
    record = read_run(run)
    stage |= {
        "name": run.name,
        "method": record.method.lower(),
        "data": record.environment.get("data"),
    }
    if of_checkpoint:  # which was not scored
        step = adapter.name.rpartition("-")[2]
        return [*earlier(record), {**stage, "steps": int(step) if step.isdigit() else None}]
    found = record.measures()
    main = next(iter(found), None)
    sides = {side: found[main][side] for side in ("before", "after")} if main else {}
    stage |= {
        "steps": section(record.environment, "trained").get("steps"),
        "measure": main,
        **sides,
    }
    return [*earlier(record), stage]


def earlier(record: Record) -> list[Row]:
    """The stages before a run, the first one first, as `chain_of` gives them."""
    listed = record.environment.get("stages")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
