"""The command line of ./run repeat: several seeds of one config, and values to choose from."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base import flags
from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.settings.command import SETTINGS, load_settings

# What decides which rows are scored and how, or has no part in training.
NOT_TRIED = ("data", "evaluation", "export", "health", "method", "run", "tracking")


@dataclass(frozen=True)
class Value:
    """One value for each key of a grid: `--grid training.learning_rate=1e-5,2e-5`."""

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


@dataclass(frozen=True)
class RepeatArgs:
    """The command line."""

    method: str
    seeds: list[int]
    grid: list[Value]
    config: Path
    overrides: list[str]
    output: Path
    name: str
    """Of the runs together; `run.name` of the config."""
    dry_run: bool
    value: Value = Value([])
    """The one of the grid whose runs are meant; without a grid it has no keys."""
    scored: bool = True
    """With a grid: whether these runs get a look at the test set."""

    def run(self, seed: int) -> Path:
        return self.output / self.value.name / f"seed-{seed}"

    def runs(self) -> dict[int, Path]:
        return {seed: self.run(seed) for seed in self.seeds}

    def own(self, seed: int) -> list[str]:
        """The overrides of one seed's run."""
        tried = [*self.value.overrides, f"run.score={str(self.scored).lower()}"]
        parts = (self.name, self.value.name, f"seed-{seed}")
        name = "-".join(part for part in parts if part)
        own = [f"training.seed={seed}", f"run.name={name}"]
        return [*self.overrides, *(tried if self.grid else ()), *own]

    def settings(self, seed: int) -> Any:
        """The settings of one seed's run, of the class of its method."""
        return load_settings(SETTINGS[self.method], self.config, self.own(seed))

    def label(self, seed: int) -> str:
        return f"{self.value.label}, seed {seed}" if self.grid else f"Seed {seed}"


def parse_repeat(story: str | None, argv: list[str] | None) -> RepeatArgs:
    """The command line; `story` is shown by --help.

    Raises:
        ConfigError: the seeds are not whole numbers, fewer than two, or also given as a setting; or
            a setting or the grid is wrong.
    """
    parser = flags.parser("repeat", story)
    add = parser.add_argument
    add("method", choices=sorted(SETTINGS))
    add("--seeds", required=True, metavar="N,N,...", help="two or more; best three")
    add("--config", required=True, type=Path, help="a YAML file of configs/")
    help_text = "values to choose from by validation; given again, every combination is tried"
    add("--grid", action="append", default=[], metavar="section.key=V,V,...", help=help_text)
    add("--output", type=Path, help="folder (default: outputs/<run.name>_seeds)")
    add("--dry-run", action="store_true", help="check everything up to the model, then stop")
    add("overrides", nargs="*", metavar="section.key=value")
    given = parser.parse_intermixed_args(argv)
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in given.seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {given.seeds}: give whole numbers, as in 1,2,3") from None
    if len(seeds) < 2:
        raise ConfigError(f"--seeds {given.seeds}: one seed has no spread; give two or more")
    grid = parse_grid(given.grid)
    settings: Any = load_settings(SETTINGS[given.method], given.config, given.overrides)
    _check(settings, grid, given.overrides)
    name: str = settings.run.name
    output = given.output or ROOT / "outputs" / f"{name}_{'grid' if grid else 'seeds'}"
    return RepeatArgs(
        given.method,
        seeds,
        grid,
        given.config,
        given.overrides,
        output.absolute(),
        name,
        given.dry_run,
    )


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


def _check(settings: Any, grid: list[Value], overrides: list[str]) -> None:
    """Raise ConfigError where the settings of a single run do not go with a repeat."""
    given = {override.partition("=")[0] for override in overrides}
    if "training.seed" in given:
        raise ConfigError("training.seed: each run has its own; give them as --seeds")
    if not settings.run.score:
        raise ConfigError("run.score: a repeat compares scores; leave it at true")
    if not grid:
        return
    for key in (override.partition("=")[0] for override in grid[0].overrides):
        if key in given:
            raise ConfigError(f"{key}: given as --grid and as a setting; leave one out")
        section, grpo = key.partition(".")[0], settings.method == "grpo"
        if section == "rewards" and grpo and settings.data.answers == "text":
            raise ConfigError(f"--grid {key}: here the rewards are the score, which would change")
        if section == "prompt" and not grpo:
            raise ConfigError(
                f"--grid {key}: it is part of each row, and runs on other rows cannot be compared"
            )
    if not settings.data.validation:
        raise ConfigError(
            "--grid: values are chosen by validation, of which the config has none; set "
            "data.validation to the number of training rows to set aside"
        )
