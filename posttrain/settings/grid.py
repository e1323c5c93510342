"""The values that a repeat tries, as they are given: `--grid training.learning_rate=1e-5,2e-5`."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.base.errors import ConfigError

# What decides which rows are scored and how, or has no part in training.
NOT_TRIED = ("data", "evaluation", "export", "health", "method", "run", "tracking")


@dataclass(frozen=True)
class Value:
    """One value for each key of a grid."""

    overrides: list[str]
    """`training.learning_rate=1e-5`, one a key."""

    @property
    def label(self) -> str:
        """`learning_rate 1e-5, beta 0.1`."""
        parts = (override.partition("=") for override in self.overrides)
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, _, value in parts)

    @property
    def name(self) -> str:
        """Of its folder and runs: `learning_rate-1e-5_beta-0.1`."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label.replace(", ", "_"))


def parse_grid(options: Sequence[str]) -> list[Value]:
    """Every combination of the values of `KEY=V,V,...`, the last key's values changing fastest.

    Raises:
        ConfigError: a key without two values, twice, or one that does not shape training; or two
            values that would be trained in the same folder.
    """
    keys: dict[str, list[str]] = {}
    for option in options:
        key, _, text = option.partition("=")
        values = [value.strip() for value in text.split(",")]
        if len(values) < 2 or not all((key, *values)):
            raise ConfigError(f"--grid {option}: give two values or more, as in section.key=1,2")
        if key in keys:
            raise ConfigError(f"--grid {option}: {key} is there twice; give all its values at once")
        if key == "training.seed":
            raise ConfigError("--grid training.seed: seeds are given as --seeds")
        if key.partition(".")[0] in NOT_TRIED:
            raise ConfigError(
                f"--grid {key}: runs that differ in it cannot be compared by validation, or are "
                f"trained alike; not of {', '.join(NOT_TRIED)}"
            )
        keys[key] = values
    if not keys:  # of which there is one combination
        return []
    combinations = [
        Value([f"{key}={value}" for key, value in zip(keys, values, strict=True)])
        for values in itertools.product(*keys.values())
    ]
    names = [value.name.lower() for value in combinations]  # some disks ignore case
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--grid: two values would both be in the folder {twice}")
    return combinations
