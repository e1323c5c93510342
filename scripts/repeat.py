"""Train one config with several seeds, one after the other, and report them together.

    ./run repeat grpo --seeds 1,2,3 --config configs/grpo_demo.yaml
    ./run repeat dpo --seeds 1,2,3 --config configs/dpo_demo.yaml --output seeds_dpo

Each seed is a run of ./run sft, dpo or grpo with training.seed=N, in DIR/seed-N. The same command
again leaves finished seeds as they are, resumes the interrupted one, and trains the missing ones. A
signal is passed to the run, which writes a checkpoint. DIR/seeds.json and DIR/report.html then have
each measure with mean, standard deviation and 95% interval over seeds, and its change with an
interval that covers seeds and questions (docs/statistics.md). Settings are those of the training
script: ./run grpo --help all.
"""

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base import flags
from posttrain.base.errors import ConfigError, ExportError
from posttrain.base.files import write_json
from posttrain.base.paths import ROOT, shown
from posttrain.base.process import run_main
from posttrain.report import seeds
from posttrain.run.folder import RunFolder
from posttrain.run.record import read_run
from posttrain.scoring.seeds import over_seeds
from posttrain.settings.command import SETTINGS, load_settings


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the `folders`, `overrides` and `settings` of the runs by seed. Raises
    ConfigError if the seeds are not whole numbers, fewer than two, or also given as a setting, or
    if a setting of one of the runs is wrong."""
    parser = flags.parser("repeat", __doc__)
    add = parser.add_argument
    add("method", choices=sorted(SETTINGS))
    add("--seeds", required=True, metavar="N,N,...", help="at least two; three are better")
    add("--config", required=True, type=Path, help="a YAML file of configs/")
    add("--output", type=Path, help="folder (default: outputs/<run.name>_seeds)")
    add("--dry-run", action="store_true", help="check everything short of loading the model")
    add("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in args.seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds {args.seeds}: give whole numbers, as in 1,2,3") from None
    if len(seeds) < 2:
        raise ConfigError(f"--seeds {args.seeds}: one seed has no spread; give two or more")
    if any(override.startswith("training.seed=") for override in args.overrides):
        raise ConfigError("training.seed: each run has its own; give them as --seeds")
    args.settings_class = SETTINGS[args.method]
    settings = load_settings(args.settings_class, args.config, args.overrides)
    if not settings.run.score:
        raise ConfigError("run.score: a repeat compares scores; leave it at true")
    if settings.evaluation.limit == 1:
        raise ConfigError("evaluation.limit: one question has no spread; score two or more")
    name = args.name = settings.run.name
    args.overrides = {
        seed: [*args.overrides, f"training.seed={seed}", f"run.name={name}-seed-{seed}"]
        for seed in seeds
    }
    args.settings = {
        seed: load_settings(args.settings_class, args.config, own)
        for seed, own in args.overrides.items()
    }
    args.output = (args.output or ROOT / "outputs" / f"{name}_seeds").absolute()
    args.folders = {seed: args.output / f"seed-{seed}" for seed in seeds}
    return args


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report; returns the exit code: that of a run that ended
    early, or of an unproven export (4), after which the other seeds are trained all the same."""
    args = parse(argv)
    if args.dry_run:
        checked = train(args, next(iter(args.settings)), "--dry-run")
        runs = len(args.settings)
        print(f"This is the first of {runs} runs; the same command without --dry-run trains all")
        return checked
    unproven = 0
    for seed, settings in args.settings.items():
        run = RunFolder(args.folders[seed])
        if run.is_done(settings, "auto", start_over(run.path)) and not settings.export.to:
            print(f"Seed {seed}: finished, in {shown(run.path)}")
            continue
        print(f"\nSeed {seed}, in {shown(run.path)}", flush=True)
        code = train(args, seed)
        if not run.finished or code not in (0, ExportError.exit_code):
            return stopped_early(args, seed, code)  # with 0 where run.max_minutes is over
        unproven = unproven or code
    report(args)
    return unproven


def train(args: argparse.Namespace, seed: int, *options: str) -> int:
    """Run the training script for one seed, passing signals to it; returns its exit code. It has
    its own process group: a Ctrl-C, which the terminal sends to a group, would reach it twice, and
    the second one ends a run without a checkpoint."""
    command = [
        *(sys.executable, str(ROOT / "scripts" / f"{args.method}.py")),
        *("--config", str(args.config), "--output", str(args.folders[seed]), *options),
        *args.overrides[seed],
    ]
    env = {"WANDB_RUN_GROUP": args.name, **os.environ}  # wandb.init reads it
    received: list[int] = []
    running: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if running is not None:
            running.send_signal(number)

    earlier = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # under nohup SIGHUP stays ignored
    }
    try:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, env=env)
        if received:  # while it started
            running.send_signal(received[0])
        code = running.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == 0 and received:  # it came too late for the run, but not for the next one
        return 128 + received[0]
    return code if code >= 0 else 128 - code


def start_over(run: Path) -> str:
    return f"move {shown(run)} away to train it again"


def stopped_early(args: argparse.Namespace, seed: int, code: int) -> int:
    """Print which run ended early and how to resume it; returns the exit code."""
    how = f"ended with code {code}" if code else "ended before its last step"
    fix = "the same command resumes from there"
    if code == ConfigError.exit_code:  # its message names options that a repeat does not take
        fix = "correct what is reported above and repeat"
        if args.folders[seed].exists():
            fix += f", or {start_over(args.folders[seed])}"
    print(f"\nSeed {seed} {how}; {fix}. Finished seeds are kept", file=sys.stderr)
    return code


def report(args: argparse.Namespace) -> None:
    """Write seeds.json and report.html, and print the table and the verdict."""
    from posttrain.report import page  # it loads matplotlib

    repeated = over_seeds(args.folders, args.settings_class)
    write_json(args.output / "seeds.json", asdict(repeated))
    written = page.write_seeds(args.output, repeated, list(args.folders.values()))
    runs = [read_run(path) for path in args.folders.values()]
    verdict = seeds.verdict(repeated, runs)
    print(f"\n{seeds.table(repeated, runs)}\n\n{verdict.sentence}", *verdict.remarks, sep="\n")
    print(f"\nFigures   {shown(args.output / 'seeds.json')}\nReport    {shown(written)}")


if __name__ == "__main__":
    run_main(main)
