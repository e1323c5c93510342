"""Train one config with several seeds, one after the other, and report them together.

    ./run repeat grpo --seeds 1,2,3 --config configs/grpo_demo.yaml
    ./run repeat dpo --seeds 1,2,3 --config configs/dpo_demo.yaml --output seeds_dpo

Each seed is a run of ./run sft, dpo or grpo with training.seed=N, in DIR/seed-N. The same command
again leaves finished seeds as they are, resumes the interrupted one, and trains the missing ones. A
signal is passed to the run, which writes a checkpoint. DIR/seeds.json and DIR/report.html then have
each measure with mean, standard deviation and 95% interval over seeds, and its change with an
interval that covers seeds and questions (docs/statistics.md). Settings are those of the training
script: ./run grpo --help all.

    ./run repeat grpo --seeds 1,2,3 --grid training.learning_rate=3e-4,1e-3,3e-3 \\
      --config configs/grpo_demo.yaml

With --grid each value is trained with each seed, in DIR/VALUE/seed-N, and validated on training
rows set aside (data.validation), but not scored. DIR/grid.json has the table and the choice: the
best mean over seeds, of equal ones the first given. Only the chosen value's runs are then scored
on the test set, without training again, and reported as above.
"""

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base.errors import ConfigError, ExportError, HealthError
from posttrain.base.files import write_json
from posttrain.base.paths import ROOT, shown
from posttrain.base.process import run_main
from posttrain.report import seeds
from posttrain.run.folder import NOT_SHAPING, RunFolder
from posttrain.run.reading import read_run
from posttrain.run.repeated import read_grid
from posttrain.scoring.grid import choose, why_stopped
from posttrain.scoring.seeds import check_same_data, over_seeds
from posttrain.settings.repeat import RepeatArgs, Value, parse_repeat

LEFT_ALONE = [name for name in NOT_SHAPING if name != "health"]
"""Sections in which a change is not a reason to try again what a health check stopped."""


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then report; returns the exit code, that of a run that ended early.

    An export that is not proven (4) ends a run but not the repeat, which then ends with that code.
    """
    args = parse_repeat(__doc__, argv)
    every = [replace(args, value=value, scored=False) for value in args.grid] or [args]
    for each in every:  # a fault in one of them is refused before any is trained
        for seed in args.seeds:
            each.settings(seed)
    if args.dry_run:
        checked = train(every[0], args.seeds[0], "--dry-run")
        runs = len(every) * len(args.seeds)
        print(f"This is the first of {runs} runs; the same command without --dry-run trains all")
        return checked
    if not args.grid:
        return repeat(args)
    stopped: dict[str, str] = {}
    code = sweep(args, every, stopped)
    if code is not None:
        return code
    chosen = choose_value(args, every, stopped)
    print(f"\nScoring {chosen.label} on the test set, with every seed")
    return repeat(replace(args, value=chosen))


def repeat(args: RepeatArgs) -> int:
    """Train and score the seeds that are missing, then report; returns the exit code."""
    unproven = 0
    for seed in args.seeds:
        run = RunFolder(args.run(seed))
        if is_done(args, seed) and not args.settings(seed).export.to:
            print(f"{args.label(seed)}: finished, in {shown(run.path)}")
            continue
        print(f"\n{args.label(seed)}, in {shown(run.path)}", flush=True)
        code = train(args, seed)
        if not run.finished or code not in (0, ExportError.exit_code):
            return stopped_early(args, seed, code)  # with 0 where run.max_minutes is over
        unproven = unproven or code
    report(args)
    return unproven


def sweep(args: RepeatArgs, every: list[RepeatArgs], stopped: dict[str, str]) -> int | None:
    """Train what is missing of the grid, without a look at the test set.

    Returns None, or the exit code of a run that ended early. A value whose run a health check stops
    goes into `stopped`, without its other seeds, and is tried again once its settings change.

    Raises:
        ConfigError: the values are not trained on the same rows.
    """
    trained: list[Path] = []
    for each in every:
        for seed in args.seeds:
            run = RunFolder(each.run(seed))
            if is_done(each, seed):
                print(f"{each.label(seed)}: trained, in {shown(run.path)}")
            else:
                code, why = HealthError.exit_code, why_stopped(run.path)
                if why is None or run.changed(each.settings(seed), LEFT_ALONE):
                    print(f"\n{each.label(seed)}, in {shown(run.path)}", flush=True)
                    code = train(each, seed)
                    why = why_stopped(run.path) or "it did not fit"
                if code == HealthError.exit_code:
                    print(f"{each.label(seed)}: left out, {why} ({start_over(run.path)})")
                    stopped[each.value.name] = f"seed {seed}: {why}"
                    break
                if code or not run.trained:
                    return stopped_early(each, seed, code)
            trained.append(run.path)
            check_same_data(trained)  # now, not when all are trained
    return None


def choose_value(args: RepeatArgs, every: list[RepeatArgs], stopped: dict[str, str]) -> Value:
    """Choose by validation, write grid.json and print its table; returns the value."""
    runs = {each.value.name: each.runs() for each in every}
    trained = {name: some for name, some in runs.items() if name not in stopped}
    grid = choose(args.grid, trained, stopped)
    write_json(args.output / "grid.json", grid.as_json())
    print(f"\n{seeds.grid_table(grid)}\n{seeds.choice(grid)}")
    return next(value for value in args.grid if value.name == grid.chosen)


def train(args: RepeatArgs, seed: int, *options: str) -> int:
    """Run the training script for one seed, passing signals to it; returns its exit code.

    It has its own process group: a Ctrl-C, which the terminal sends to a group, would reach
    it twice, and the second one ends a run without a checkpoint.
    """
    command = [
        *(sys.executable, str(ROOT / "scripts" / f"{args.method}.py")),
        *("--config", str(args.config), "--output", str(args.run(seed)), *options),
        *args.own(seed),
    ]
    environment = {"WANDB_RUN_GROUP": args.name, **os.environ}  # wandb.init reads it
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
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, env=environment
        )
        if received:  # while it started
            running.send_signal(received[0])
        code = running.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == 0 and received:  # it came too late for the run, but not for the next one
        return 128 + received[0]
    return code if code >= 0 else 128 - code


def is_done(args: RepeatArgs, seed: int) -> bool:
    """Whether a seed's run is there, and scored or, if `run.score` is false, trained; raises
    ConfigError if it is there with other settings."""
    run = args.run(seed)
    return RunFolder(run).is_done(args.settings(seed), "auto", start_over(run))


def start_over(run: Path) -> str:
    return f"move {shown(run)} away to train it again"


def stopped_early(args: RepeatArgs, seed: int, code: int) -> int:
    """Print which run ended early and how to resume it; returns the exit code."""
    how = f"ended with code {code}" if code else "ended before its last step"
    fix = "the same command resumes from there"
    if code == ConfigError.exit_code:  # its message names options that a repeat does not take
        fix = "correct what is reported above and repeat"
        if args.run(seed).exists():
            fix += f", or {start_over(args.run(seed))}"
    print(f"\n{args.label(seed)} {how}; {fix}. Finished seeds are kept", file=sys.stderr)
    return code


def report(args: RepeatArgs) -> None:
    """Write seeds.json and report.html, and print the table and the verdict."""
    from posttrain.report import page

    paths = args.runs()
    repeated = over_seeds(paths, type(args.settings(args.seeds[0])))
    write_json(args.output / "seeds.json", asdict(repeated))
    grid = read_grid(args.output / "grid.json") if args.grid else None
    written = page.write_seeds(args.output, repeated, list(paths.values()), grid)
    runs = [read_run(path) for path in paths.values()]
    verdict = seeds.verdict(repeated, runs)
    print(f"\n{seeds.table(repeated, runs)}\n\n{verdict.sentence}", *verdict.remarks, sep="\n")
    print(f"\nFigures   {shown(args.output / 'seeds.json')}\nReport    {shown(written)}")


if __name__ == "__main__":
    run_main(main)
