"""The project's exceptions, each with the exit code of a script, and parts of their messages.

Exit codes: 0 done; 2 the request is wrong; 3 a health check stopped the run; 4 an export failed its
parity check; 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

FEW = 12  # names that a message can list
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


class PostTrainError(Exception):
    """An error that the user can act on. Its text: what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(PostTrainError):
    """The settings are wrong: an unknown key, a wrong type, a combination that cannot work."""

    exit_code = 2


class DataError(PostTrainError):
    """A dataset cannot be used: missing, empty, malformed, or with a row that breaks a rule."""

    exit_code = 2


class CheckpointError(PostTrainError):
    """No usable checkpoint, or one that could not be written."""

    exit_code = 2


class ExportError(PostTrainError):
    """An exported file does not behave like the adapter, or a tool failed to make it."""

    exit_code = 4


class HealthError(PostTrainError):
    """A run that a health check stopped, or that does not fit the memory."""

    exit_code = 3


def hub_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What libraries raise where the hub is out of reach or a file cannot be read, and `more`; a
    dropped connection is an error of httpx, and no OSError."""
    import httpx
    from safetensors import SafetensorError

    return httpx.HTTPError, OSError, SafetensorError, *more


def nearest(word: str, valid: Iterable[str], cutoff: float | None = None) -> str | None:
    """The valid name that `word` may be a slip of, None where none is like it; `cutoff` is how
    alike they have to be, up to 1."""
    cutoff = cutoff or (0.6 if len(word) > 2 else 0.5)  # two swapped letters are half right
    near = difflib.get_close_matches(word, sorted(valid), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(word: str, valid: Iterable[str], cutoff: float | None = None) -> str:
    """`" Did you mean 'x'?"` for the nearest valid name; without one the names, where few."""
    names = sorted(valid)
    near = nearest(word, names, cutoff)
    if near is not None:
        return f" Did you mean '{near}'?"
    return f" Valid: {', '.join(names)}." if 0 < len(names) <= FEW else ""


def first_line(error: Exception) -> str:
    """The first line of what another library says is wrong; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quoted(text: str) -> str:
    """The beginning of a text in quotation marks, with an ellipsis where it was cut."""
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


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
