"""What a value should be and what was given instead, in terms of YAML and JSON."""

import json
from collections.abc import Mapping
from typing import Any

from posttrain.base.errors import quoted

LONGEST = 60  # characters of a value that a message quotes
# By pydantic's names of errors (https://docs.pydantic.dev/latest/errors/validation_errors/).
SHOULD = {
    "bool_type": "be true or false",
    "dataclass_type": "be an object",
    "dict_type": "be a section",
    "float_type": "be a number",
    "greater_than": "be above {gt:g}",
    "greater_than_equal": "be {ge:g} or more",
    "int_from_float": "be a whole number",
    "int_type": "be a whole number",
    "less_than": "be below {lt:g}",
    "less_than_equal": "be {le:.10g} or less",
    "list_type": "be a list, such as [a, b]",
    "model_attributes_type": "be a section",
    "model_type": "be a section",
    "string_pattern_mismatch": (
        "be letters, digits, '.', '_' and '-', the first of them a letter or a digit"
    ),
    "string_type": "be text",
    "too_short": "have {min_length} or more entries",
}


def expected(details: Mapping[str, Any]) -> str:
    """`should be a whole number, got the text 'five'`, for one of pydantic's errors."""
    if details["type"] == "missing":
        return "is missing"
    rule = SHOULD.get(details["type"].replace("_parsing", "_type"))
    ours = rule and f"should {rule.format(**details.get('ctx', {}))}"
    should = ours or details["msg"].removeprefix("Input ")
    return f"{should}, got {given(details['input'])}"


def kind_of(value: Any) -> str:
    """What a value of YAML or JSON is, such as `null`, `text` or `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list | tuple) else "an object"


def given(value: Any) -> str:
    """A value as a message quotes it: `null`, `5`, `the text 'five'`, `the list [1, 2]`."""
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
    return f"the {kind_of(value).split()[-1]} {shown}" if shown[0] in "[{" else shown
