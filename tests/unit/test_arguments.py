"""Changed arguments of a trainer, as environment.json records them."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.train.arguments import changes, refused_by


class Kind(enum.Enum):
    STEPS = "steps"


@dataclasses.dataclass
class Inner:
    even: bool = True
    dispatch: bool | None = None


@dataclasses.dataclass
class Arguments:
    """The kinds of values that a library puts into its arguments."""

    accelerator: Any = dataclasses.field(default_factory=Inner)
    kinds: Any = dataclasses.field(default_factory=lambda: [Kind.STEPS])
    kind: Any = Kind.STEPS
    path: Any = Path("here")
    epsilon: Any = float("inf")
    callback: Any = print
    report_to: Any = dataclasses.field(default_factory=list)


def test_a_value_that_only_changed_its_form_is_no_change() -> None:
    same = {"accelerator": {"dispatch": None}, "kinds": ["steps"], "kind": "steps", "path": "here"}
    assert changes({**same, "epsilon": float("inf"), "report_to": "none"}, Arguments()) == {}


def test_whatever_a_library_puts_into_its_arguments_can_be_written_as_json() -> None:
    requested = {
        "accelerator": {"dispatch": False},
        "kinds": ["epoch"],
        "path": "there",
        "epsilon": float("nan"),
        "callback": "x",
        "gone": 1,
    }
    changed = changes(requested, Arguments())
    assert set(changed) == set(requested)
    assert changed["accelerator"]["used"] == {"even": True, "dispatch": None}
    assert json.loads(json.dumps(changed, allow_nan=False)) == changed


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_what_a_library_refuses_is_one_line(kind: type[Exception]) -> None:
    with pytest.raises(ConfigError) as caught, refused_by("GRPOConfig"):
        raise kind("no good:\n - nothing")
    assert "training: GRPOConfig refuses it: " in str(caught.value)
    assert "\n" not in str(caught.value) and "no good" in str(caught.value)
