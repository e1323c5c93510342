"""The records of a run folder from JSON that is damaged, partial, or of an earlier version."""

import json
from dataclasses import asdict

from eval.stats import Difference, Measure
from posttrain.run.results import (
    Environment,
    Exported,
    FileScore,
    Stage,
    Trained,
    Validated,
    from_json,
)


def test_a_field_that_does_not_fit_keeps_its_default_and_nothing_else_is_lost() -> None:
    values = {"value": 1, "n": "many", "low": float("nan"), "high": True, "added later": 3}
    assert from_json(Measure, values) == Measure(1.0, 0, None, None)
    assert from_json(Measure, [1]) == from_json(Measure, None) == Measure()
    entries = {"strict": {"difference": 0.5, "n": 3}, "odd": 3, "none": None}
    assert from_json(dict[str, Difference], entries) == {"strict": Difference(0.5, n=3)}
    assert from_json(dict[str, Difference], "odd") == {}
    row = from_json(Validated, {"step": 4, "measures": {"strict": {"value": 0.5, "n": 8}, "x": 1}})
    assert row == Validated(4, {"strict": Measure(0.5, 8)})


def test_records_inside_of_records_are_read() -> None:
    stage = Stage("warm_up", "a1", "sft", "d1", 40, "strict", Measure(0.1, 9), Measure(0.5, 9))
    content = {"stages": [asdict(stage), 3], "trained": {"steps": 4}, "kept": [], "git": None}
    record = from_json(Environment, json.loads(json.dumps(content)))
    assert record.stages == [stage] and record.kept is None and record.git == ""
    assert record.trained == Trained(4)


def test_what_is_written_is_what_is_read() -> None:
    score = FileScore("strict", 8, 6, 1, 2, 0.5, {"strict": Measure(0.5, 8, 0.1, 0.9)})
    entry = Exported("x.gguf", True, 10.0, score=score)
    assert from_json(Exported, json.loads(json.dumps(asdict(entry)))) == entry
