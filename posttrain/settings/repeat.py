"""The command line of ./run repeat: several seeds of one config, and values to choose from."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT, run_command
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.settings.grid import Value, parse_grid


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
    value: Value | None = None
    """The one of the grid whose runs are meant."""
    scored: bool = True

    def of(self, value: Value, scored: bool) -> "RepeatArgs":
        """The runs of one value of the grid, with or without a look at the test set."""
        return replace(self, value=value, scored=scored)

    def run(self, seed: int) -> Path:
        return self.output / (self.value.name if self.value else "") / f"seed-{seed}"

    def runs(self) -> dict[int, Path]:
        return {seed: self.run(seed) for seed in self.seeds}

    def own(self, seed: int) -> list[str]:
        """The overrides of one seed's run."""
        tried, name = [], self.name
        if self.value:
            tried = [*self.value.overrides, f"run.score={str(self.scored).lower()}"]
            name += f"-{self.value.name}"
        return [*self.overrides, *tried, f"training.seed={seed}", f"run.name={name}-seed-{seed}"]

    def settings(self, seed: int) -> Any:
        """The settings of one seed's run, of the class of its method."""
        return load_settings(SETTINGS[self.method], self.config, self.own(seed))

    def label(self, seed: int) -> str:
        return f"{self.value.label}, seed {seed}" if self.value else f"Seed {seed}"


def parse_repeat(story: str, argv: list[str] | None) -> RepeatArgs:
    """The command line; `story` is shown by --help.

    Raises:
        ConfigError: the seeds are not whole numbers, fewer than two, or also given as a setting; or
            a setting or the grid is wrong.
    """
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} repeat",
        description=story,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=sorted(SETTINGS))
    parser.add_argument("--seeds", required=True, metavar="N,N,...", help="two or more; best three")
    parser.add_argument("--config", required=True, type=Path, help="a YAML file of configs/")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="section.key=V,V,...",
        help="values to choose from by validation; given again, every combination is tried",
    )
    parser.add_argument("--output", type=Path, help="folder (default: outputs/<run.name>_seeds)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything up to the model, then stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
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
        if (
            key.partition(".")[0] == "rewards"
            and settings.method == "grpo"
            and settings.data.answers == "text"
        ):
            raise ConfigError(f"--grid {key}: here the rewards are the score, which would change")
        if key.partition(".")[0] == "prompt" and settings.method != "grpo":
            raise ConfigError(
                f"--grid {key}: it is part of each row, and runs on other rows cannot be compared"
            )
    if not settings.data.validation:
        raise ConfigError(
            "--grid: values are chosen by validation, of which the config has none; set "
            "data.validation to the number of training rows to set aside"
        )
