"""The reward functions that settings name, loaded and tried before anything heavy is loaded."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rewards
from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT


@contextmanager
def reward_errors(where: str = "") -> Iterator[None]:
    """What is wrong with a reward becomes a ConfigError; `where` goes before it."""
    try:
        yield
    except rewards.RewardError as error:
        raise ConfigError(f"rewards: {where}{error}") from None


def load(
    names: Iterable[str], answers: str, run: Path | None = None
) -> dict[str, rewards.RewardFunction]:
    """The functions of `names`, for gold answers that are `number` or `text`.

    Where the settings of a run folder named them, and not the user, `run` is that folder: as with
    models, a folder that may come from elsewhere must not run its Python. Raises ConfigError where
    a function is there, is missing, or takes numbers where answers are text.
    """
    names = list(names)
    for name in names:
        if run is not None and any(place.is_relative_to(run.resolve()) for place in _places(name)):
            raise ConfigError(
                f"rewards: {name} is Python in the run folder {run}, which a folder from elsewhere "
                "could use to run anything. Read it, and if it is yours move it out of there"
            )
    with reward_errors():
        functions = {name: rewards.resolve(name) for name in names}
    for name, function in functions.items():
        if answers == "text" and function in rewards.OF_NUMBERS:
            raise ConfigError(
                f"rewards: {name} reads numbers, and data.answers is text. Take it out, and name "
                "a reward of your own, such as my_rewards.py:my_function: it gets the gold text "
                "as `answer` (docs/rewards.md)"
            )
    return functions


def _places(name: str) -> list[Path]:
    """Where the file of `file.py:function` or `package.module:function` may be."""
    location = name.rpartition(":")[0]
    if not location.endswith(".py") and "/" not in location:
        location = location.replace(".", "/")
    return [(folder / location).resolve() for folder in (Path.cwd(), ROOT)] if location else []


def weighted(text: str) -> tuple[str, float]:
    """Name and weight of `NAME=WEIGHT`; the weight is 1.0 where there is none, else finite."""
    name, given, weight = text.rpartition("=")
    if not given:
        return text, 1.0
    with suppress(ValueError):
        if math.isfinite(number := float(weight)):
            return name, number
    raise ConfigError(f"--rewards {text}: the weight {weight!r} is not a finite number")


def tried(
    functions: Mapping[str, rewards.RewardFunction], row: Mapping[str, Any], where: str = ""
) -> list[str]:
    """Call each function on one row as trl does; returns a line each, with the range seen. Raises
    ConfigError if one cannot be called so, or returns something else than numbers or None."""
    with reward_errors(where):
        return [rewards.describe(n, rewards.check_reward(n, f, row)) for n, f in functions.items()]
