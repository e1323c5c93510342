"""The earlier stages of a run, a line each."""

from posttrain.run import measures
from posttrain.run.record import Record, Row, number, section
from posttrain.run.stages import earlier


def lines(record: Record) -> list[str]:
    """One line for each earlier stage: `warm_up: SFT, 40 steps; strict accuracy 1% -> 20%`."""
    return [_line(stage) for stage in earlier(record)]


def _line(stage: Row) -> str:
    name = str(stage.get("name", "an adapter"))
    if not stage.get("method"):
        return f"{name}: an adapter without its run (fingerprint {str(stage.get('adapter'))[:12]})"
    parts = [f"{name}: {str(stage['method']).upper()}, {stage.get('steps')} steps"]
    main = stage.get("measure")
    if isinstance(main, str):
        values = [
            measures.plain(main, number(section(stage, side).get("value")))
            for side in ("before", "after")
        ]
        parts.append(f"{measures.label(main)} {' -> '.join(values)}")
    return "; ".join(parts)
