"""What messages require of a value: in terms of YAML and JSON, not of pydantic."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from pydantic_core.core_schema import ErrorType

from posttrain.base.errors import SHOULD, ConfigError, DataError
from posttrain.base.files import rows_of
from posttrain.settings import DPOSettings
from posttrain.settings.command import parse_command_line
from tests.helpers import ROOT
from tests.unit.conftest import Ask

PYDANTICS = re.compile(r"Input|instance|\bvalid\b|pattern|NoneType|\((int|str|float|bool|list)\)")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.extra.adam_beta1=high", "adam_beta1: expected number, got the text 'high'"),
        ("training.extra.dataset_num_proc=all", "expected integer | null, got the text 'all'"),
        ("model=", "model: should be a section, got null"),
        ("training.bf16=yes please", "training.bf16: should be true or false, got the text 'yes "),
        ("training.loss_type=ipo", "training.loss_type: should be a list, such as [a, b], got the"),
        ("evaluation.also=[{path: x, name: ''}]", "evaluation.also.0.name: should be letters,"),
    ],
)
def test_the_message_on_a_wrong_value(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(DPOSettings, "", ["--config", "configs/dpo_demo.yaml", override])
    assert words in str(caught.value)
    assert not PYDANTICS.search(str(caught.value))


def test_a_row_of_a_file_too() -> None:
    @dataclass(frozen=True)
    class Kept:
        tokens: int

    for row, words in (({}, "tokens: is missing"), ({"tokens": "x"}, "tokens: should be a whole")):
        with pytest.raises(DataError) as caught:
            rows_of(Kept, [row], Path("kept.jsonl"))
        assert words in str(caught.value)
        assert not PYDANTICS.search(str(caught.value))


def test_pydantic_knows_these_errors() -> None:
    assert set(SHOULD) <= set(get_args(ErrorType))


@pytest.mark.parametrize("name", ["grpo", "evaluate", "doctor"])
def test_usage_names_the_command_as_it_is_typed(name: str, ask: Ask, tmp_path: Path) -> None:
    for folder, typed in ((ROOT, "./run"), (tmp_path, str(ROOT / "run"))):
        usage = ask(name, "--no-such-option", cwd=folder).stderr
        assert f"usage: {typed} {name} " in " ".join(usage.split())
        assert f"{name}.py" not in usage
