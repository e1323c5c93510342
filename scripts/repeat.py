"""Train one config with several seeds, one after the other, and tell what they say together.

    ./run repeat grpo --seeds 1,2,3 --config configs/grpo_demo.yaml
    ./run repeat dpo --seeds 1,2,3 --config configs/dpo_demo.yaml --output seeds_dpo

Each seed is a run of ./run grpo or ./run dpo with training.seed=N, in DIR/seed-N. The same command
again leaves finished seeds as they are, goes on with the one that was interrupted, and trains those
that are missing. A signal is passed on to the run, which writes a checkpoint. Then DIR/seeds.json
and DIR/report.html have each measure with mean, standard deviation and 95% interval over seeds, and
its change with an interval that covers seeds and questions (docs/statistics.md). Settings are those
of the training script: ./run grpo --help all.
"""

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from posttrain.base.errors import ConfigError, ExportError
from posttrain.base.files import write_json
from posttrain.base.paths import ROOT, run_command, shown
from posttrain.base.process import run_main
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings, GRPOSettings
from posttrain.settings.command import SETTINGS, load_settings


@dataclass(frozen=True)
class Asked:
    """The command line."""

    method: str
    seeds: list[int]
    config: Path
    overrides: list[str]
    output: Path
    name: str
    """Of the runs together; `run.name` of the config."""
    dry_run: bool

    def run(self, seed: int) -> Path:
        return self.output / f"seed-{seed}"

    def own(self, seed: int) -> list[str]:
        """The overrides of one seed's run."""
        return [*self.overrides, f"training.seed={seed}", f"run.name={self.name}-seed-{seed}"]


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then tell; returns the exit code, that of a run that ended early.

    An export that is not proven (4) ends a run but not the repeat, which then leaves with it.
    """
    asked = parse(argv)
    settings_class: Any = SETTINGS[asked.method]
    settings = [load_settings(settings_class, asked.config, asked.own(s)) for s in asked.seeds]
    if asked.dry_run:
        return train(asked, asked.seeds[0], "--dry-run")
    unproven = 0
    for seed, each in zip(asked.seeds, settings, strict=True):
        run = RunFolder(asked.run(seed))
        if run.is_done(each, "auto") and not each.export.to:
            print(f"Seed {seed}: finished, in {shown(run.path)}")
            continue
        print(f"\nSeed {seed}, in {shown(run.path)}", flush=True)
        code = train(asked, seed)
        if not run.finished or code not in (0, ExportError.exit_code):
            return stopped(seed, code)  # with 0 where run.max_minutes is over
        unproven = unproven or code
    tell(asked, settings_class)
    return unproven


def parse(argv: list[str] | None) -> Asked:
    """The command line.

    Raises:
        ConfigError: the seeds are not whole numbers, fewer than two, or also given as a setting; or
            a setting is wrong.
    """
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} repeat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=sorted(SETTINGS))
    parser.add_argument("--seeds", required=True, metavar="N,N,...", help="two or more; best three")
    parser.add_argument("--config", required=True, type=Path, help="a YAML file of configs/")
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
    if any(override.startswith("training.seed=") for override in given.overrides):
        raise ConfigError("training.seed: each run has its own; give them as --seeds")
    settings: Any = load_settings(SETTINGS[given.method], given.config, given.overrides)
    name: str = settings.run.name
    output = (given.output or ROOT / "outputs" / f"{name}_seeds").absolute()
    return Asked(given.method, seeds, given.config, given.overrides, output, name, given.dry_run)


def train(asked: Asked, seed: int, *options: str) -> int:
    """Run the training script for one seed, passing signals on to it; returns its exit code.

    It has a process group of its own: a Ctrl-C, which the terminal sends to the whole group, would
    reach it twice, and the second one ends a run without a checkpoint.
    """
    command = [
        *(sys.executable, str(ROOT / "scripts" / f"{asked.method}.py")),
        *("--config", str(asked.config), "--output", str(asked.run(seed)), *options),
        *asked.own(seed),
    ]
    environment = {"WANDB_RUN_GROUP": asked.name, **os.environ}  # wandb.init reads it
    heard: list[int] = []
    running: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if running is not None:
            running.send_signal(number)

    earlier = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # under nohup SIGHUP stays ignored
    }
    try:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, env=environment
        )
        if heard:  # while it started
            running.send_signal(heard[0])
        code = running.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == 0 and heard:  # it came too late for the run, but not for the next one
        return 128 + heard[0]
    return code if code >= 0 else 128 - code


def stopped(seed: int, code: int) -> int:
    """Say which seed ended early and how to go on; returns the exit code."""
    how = f"with code {code}" if code else "before its last step"
    print(
        f"\nSeed {seed} ended {how}; the same command goes on from there. Finished seeds are kept",
        file=sys.stderr,
    )
    return code


def tell(asked: Asked, settings_class: type[DPOSettings | GRPOSettings]) -> None:
    """Write seeds.json and report.html, and print the table and the verdict."""
    from posttrain.report import page, read_run, seeds
    from posttrain.scoring.seeds import over_seeds

    runs = {seed: asked.run(seed) for seed in asked.seeds}
    found = over_seeds(runs, settings_class)
    write_json(asked.output / "seeds.json", found)
    records = [read_run(run) for run in runs.values()]
    written = page.write_seeds(asked.output, found, list(runs.values()))
    said = seeds.verdict(found, records)
    print(f"\n{seeds.table(found, records)}\n\n{said.sentence}")
    for remark in said.remarks:
        print(remark)
    print(f"\nFigures   {shown(asked.output / 'seeds.json')}\nReport    {shown(written)}")


if __name__ == "__main__":
    run_main(main)
