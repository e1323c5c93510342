"""Train one config with several seeds, one after the other, and tell what they say together.

    ./run repeat grpo --seeds 1,2,3 --config configs/grpo_demo.yaml
    ./run repeat dpo --seeds 1,2,3 --config configs/dpo_demo.yaml --output seeds_dpo

Each seed is a run of ./run sft, dpo or grpo with training.seed=N, in DIR/seed-N. The same command
again leaves finished seeds as they are, goes on with the one that was interrupted, and trains those
that are missing. A signal is passed on to the run, which writes a checkpoint. Then DIR/seeds.json
and DIR/report.html have each measure with mean, standard deviation and 95% interval over seeds, and
its change with an interval that covers seeds and questions (docs/statistics.md). Settings are those
of the training script: ./run grpo --help all.

    ./run repeat grpo --seeds 1,2,3 --grid training.learning_rate=3e-4,1e-3,3e-3 \\
      --config configs/grpo_demo.yaml

With --grid each value is trained with each seed, in DIR/VALUE/seed-N, and validated on training
rows set aside (data.validation), but not scored. DIR/grid.json has the table and the choice: the
best mean over seeds, of equal ones the first given. Only the chosen value's runs are then scored
on the test set, without training again, and told as above.
"""

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

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
from posttrain.settings.grid import Value
from posttrain.settings.repeat import Asked, parse_repeat

LEFT_ALONE = [name for name in NOT_SHAPING if name != "health"]
"""Sections in which a change is no reason to try again what a health check stopped."""


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, then tell; returns the exit code, that of a run that ended early.

    An export that is not proven (4) ends a run but not the repeat, which then leaves with it.
    """
    asked = parse_repeat(__doc__ or "", argv)
    every = [asked.of(value, scored=False) for value in asked.grid] or [asked]
    for each in every:  # what is wrong in one of them is said before any is trained
        for seed in asked.seeds:
            each.settings(seed)
    if asked.dry_run:
        checked = train(every[0], asked.seeds[0], "--dry-run")
        runs = len(every) * len(asked.seeds)
        print(f"This is the first of {runs} runs; the same command without --dry-run trains all")
        return checked
    if not asked.grid:
        return repeat(asked)
    stopped: dict[str, str] = {}
    code = sweep(asked, every, stopped)
    if code is not None:
        return code
    chosen = choose_value(asked, every, stopped)
    print(f"\nScoring {chosen.label} on the test set, with every seed")
    return repeat(asked.of(chosen, scored=True))


def repeat(asked: Asked) -> int:
    """Train and score the seeds that are missing, then tell; returns the exit code."""
    unproven = 0
    for seed in asked.seeds:
        run = RunFolder(asked.run(seed))
        if is_done(asked, seed) and not asked.settings(seed).export.to:
            print(f"{asked.label(seed)}: finished, in {shown(run.path)}")
            continue
        print(f"\n{asked.label(seed)}, in {shown(run.path)}", flush=True)
        code = train(asked, seed)
        if not run.finished or code not in (0, ExportError.exit_code):
            return stopped_early(asked, seed, code)  # with 0 where run.max_minutes is over
        unproven = unproven or code
    tell(asked)
    return unproven


def sweep(asked: Asked, every: list[Asked], stopped: dict[str, str]) -> int | None:
    """Train what is missing of the grid, without a look at the test set.

    Returns None, or the exit code of a run that ended early. A value of which a health check stops
    a run is put into `stopped`, and its other seeds are left out; it is tried again once its
    settings are others.

    Raises:
        ConfigError: the values are not trained on the same rows.
    """
    trained: list[Path] = []
    for each in every:
        for seed in asked.seeds:
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
                    stopped[each.value.name if each.value else ""] = f"seed {seed}: {why}"
                    break
                if code or not run.trained:
                    return stopped_early(each, seed, code)
            trained.append(run.path)
            check_same_data(trained)  # now, not when all are trained
    return None


def choose_value(asked: Asked, every: list[Asked], stopped: dict[str, str]) -> Value:
    """Choose by validation, write grid.json and print its table; returns the value."""
    runs = {each.value.name: each.runs() for each in every if each.value}
    trained = {name: some for name, some in runs.items() if name not in stopped}
    grid = choose(asked.grid, trained, stopped)
    write_json(asked.output / "grid.json", grid.as_json())
    print(f"\n{seeds.grid_table(grid)}\n{seeds.choice(grid)}")
    return next(value for value in asked.grid if value.name == grid.chosen)


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


def is_done(asked: Asked, seed: int) -> bool:
    """Whether a seed's run is there, scored or, where it is not to be, trained.

    Raises:
        ConfigError: it is there with other settings.
    """
    run = asked.run(seed)
    return RunFolder(run).is_done(asked.settings(seed), "auto", start_over(run))


def start_over(run: Path) -> str:
    return f"move {shown(run)} away to train it anew"


def stopped_early(asked: Asked, seed: int, code: int) -> int:
    """Say which run ended early and how to go on; returns the exit code."""
    how = f"ended with code {code}" if code else "ended before its last step"
    go_on = "the same command goes on from there"
    if code == ConfigError.exit_code:  # its own words name options that a repeat does not take
        go_on = "mend what is said above and repeat"
        if asked.run(seed).exists():
            go_on += f", or {start_over(asked.run(seed))}"
    print(
        f"\n{asked.label(seed)} {how}; {go_on}. Finished seeds are kept",
        file=sys.stderr,
    )
    return code


def tell(asked: Asked) -> None:
    """Write seeds.json and report.html, and print the table and the verdict."""
    from posttrain.report import page

    paths = asked.runs()
    repeated = over_seeds(paths, type(asked.settings(asked.seeds[0])))
    write_json(asked.output / "seeds.json", asdict(repeated))
    grid = read_grid(asked.output / "grid.json") if asked.value else None
    written = page.write_seeds(asked.output, repeated, list(paths.values()), grid)
    runs = [read_run(path) for path in paths.values()]
    verdict = seeds.verdict(repeated, runs)
    print(f"\n{seeds.table(repeated, runs)}\n\n{verdict.sentence}")
    for remark in verdict.remarks:
        print(remark)
    print(f"\nFigures   {shown(asked.output / 'seeds.json')}\nReport    {shown(written)}")


if __name__ == "__main__":
    run_main(main)
