"""What the JSON files of a run folder hold, for whoever writes and whoever reads them.

`Measure`, `Difference` and `Change` are those of eval. Every field has a default, so that
`from_json` can read a folder of an earlier version, or one with a damaged file.
"""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from eval import MeasuredReply, Message
from eval.measures import Change, kind
from eval.stats import NOT_MEASURABLE, Difference, Measure

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """`trained` of environment.json: how training ended."""

    steps: int = 0
    seconds: float | None = None
    exit_code: int | None = None
    """Of a run that ended before its last step."""
    reason: str = ""


@dataclass(frozen=True)
class Kept:
    """`kept` of environment.json: the adapter that validation chose."""

    step: int = 0
    by: str = ""
    """The measure that decided."""
    value: float | None = None
    validations: int = 0
    best: bool = True
    """It had the best validation; else it is that of the last step (run.keep=last)."""
    before: float | None = None
    """The value before training, where that was better."""


@dataclass(frozen=True)
class Stage:
    """An entry of `stages` in environment.json: an earlier run whose adapter this one started from.
    Of an adapter without its run only name and fingerprint are known."""

    name: str = "an adapter"
    adapter: str = ""
    """Fingerprint of its adapter."""
    method: str = ""
    data: str = ""
    """Fingerprint of its data."""
    steps: int | None = None
    measure: str = ""
    """The headline of its scores."""
    before: Measure = NOT_MEASURABLE
    after: Measure = NOT_MEASURABLE

    def as_json(self) -> dict[str, object]:
        """As it stands in environment.json: without what is not known."""
        unset: tuple[object, ...] = (None, "", asdict(NOT_MEASURABLE))
        return {k: v for k, v in asdict(self).items() if v not in unset}


@dataclass(frozen=True)
class ChangedArgument:
    """An argument that trl or Unsloth changed."""

    asked: object = None
    used: object = None


@dataclass(frozen=True)
class Environment:
    """environment.json: when, where, on what and with which versions a run was made."""

    started: str = ""
    command: list[str] = field(default_factory=list)
    git: str = ""
    data: str = ""
    """Fingerprint of every row that is trained or scored on."""
    platform: str = ""
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    changed_arguments: dict[str, ChangedArgument] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    trained: Trained | None = None
    kept: Kept | None = None
    """None without validation."""


@dataclass(frozen=True)
class Validated:
    """A row of eval/validation.jsonl."""

    step: int = -1
    measures: dict[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class HealthEvent:
    """A row of health.jsonl."""

    step: object = "?"
    kind: str = ""
    message: str = ""
    value: object = None
    threshold: object = None
    action: str = ""


@dataclass(frozen=True)
class FileScore:
    """How a file made of a model compares with that model on the same rows (`score` of an export).

    `right` are the rows that the model gets right by the `main` measure, None where scores are not
    right or wrong; `gained` and `lost` those on which the file does better and worse.
    """

    main: str = ""
    n: int = 0
    right: int | None = None
    gained: int = 0
    lost: int = 0
    p_value: float | None = None
    measures: dict[str, Measure] = field(default_factory=dict)
    against_adapter: dict[str, Difference] = field(default_factory=dict)
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Check:
    """A result of the parity check. passed: value <= limit, or value == limit for text."""

    name: str = ""
    value: Any = None
    limit: Any = None
    passed: bool = False
    of: int | None = None
    """How many were checked, where the value is a count."""


@dataclass(frozen=True)
class Exported:
    """An entry of `exports` in export.json."""

    path: str = ""
    proven: bool = False
    bytes: float | None = None
    checks: list[Check] = field(default_factory=list)
    stale: str = ""
    """Why it is not of the adapter that is there now."""
    score: FileScore | None = None


@dataclass(frozen=True)
class Answered:
    """What a reply answers."""

    side: str
    """`before` or `after` training."""
    system: str | None
    earlier: list[Message]
    """The turns before the last one, without the system's."""
    prompt: str
    """The last user turn."""


@dataclass(frozen=True)
class PromptReply(MeasuredReply, Answered):
    """A row of eval/SIDE_replies.jsonl, or of SIDE_replies_without_system.jsonl: a reply as
    evaluation.temperature has it."""


@dataclass(frozen=True)
class SampledReply(Answered):
    """A row of eval/SIDE_samples.jsonl: a reply sampled at temperature 1."""

    text: str
    tokens: int
    ended: bool
    kl_per_token: float
    """To the reference, in nats."""


def paired(
    main: str,
    pairs: Sequence[tuple[float | None, float | None]],
    measured: dict[str, Measure],
    compared: dict[str, Change],
) -> FileScore:
    """The score of a file against its model: `pairs` are the scores of model and file on each row,
    of which one without a score is not counted, `measured` the file's measures, and `compared` is
    `eval.measures.compare` of model and file."""
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return FileScore(
        main=main,
        n=len(known),
        right=sum(a == 1.0 for a, _ in known) if kind(main).binary else None,
        gained=sum(b > a for a, b in known),
        lost=sum(b < a for a, b in known),
        p_value=compared[main].p_value,
        measures=measured,
        against_adapter={name: each.alone for name, each in compared.items()},
    )


def from_json(kind: type[T], values: object) -> T:
    """A `kind`, a dataclass whose fields have defaults or a dict of such, from a JSON object.

    A field that is missing, or whose value is of another type or not finite, keeps its default; a
    list or mapping loses the entries that do not fit. Anything but an object gives the defaults.
    """
    fitting = [copy.deepcopy(values) if isinstance(values, Mapping) else {}]
    while True:
        try:
            text = json.dumps(fitting, ensure_ascii=False).encode("utf-8", "replace")
            result: T = _adapter(kind).validate_json(text)[0]  # type: ignore[arg-type]  # hashable
            return result
        except ValidationError as error:
            for each in reversed(error.errors()):
                *path, last = each["loc"]
                inner: Any = fitting
                for key in path:
                    inner = inner[key]
                del inner[last]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[kind], config=ConfigDict(strict=True, allow_inf_nan=False))
