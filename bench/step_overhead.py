"""What this project adds to a training step of bare Unsloth + trl, on a CPU with the demo model.

    python bench/step_overhead.py --output bench/results/step_overhead_cpu.json

Three sides on the same Unsloth model, the same trl trainer, arguments, data, completion lengths:
- `bare`: Unsloth's model, trl's trainer, two reward functions of a few lines, `trainer.train()`;
- `project`: build_trainer of the script and posttrain/train/loop.py, with all that a run has on:
  metrics.jsonl, progress bar, sample records, reward statistics, health checks, early stops;
- `tracked`: the same with W&B (offline) and TensorBoard.

The sides take turns in one process with one thread, many short trainings each, the order changing
every round; step n does the same work on every side. A step of the same work is up to a tenth
slower or faster from one training to the next, on an idle machine as well, by where its tensors
happen to lie; hence many trainings, each a fresh model and trainer. Given are seconds of the clock
and of the processor: the median of the rounds' ratios with its 95% bootstrap interval. As that
interval is of the size of what is looked for, what a side adds is also timed by itself, inside the
step: callbacks, rewards, and the processes that trackers start, by the processor's seconds.

Saves are left out of the steps: `seconds_after_last_step` has the one at the end.
"""

import contextlib
import functools
import io
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.command import finish, machine, parser
from bench.lengths import force_lengths, recorded_lengths
from bench.sides import Spec, build_project, load_rows, trl_trainer
from bench.watch import Clock
from posttrain.model import adapter, policy, pretrained, runtime
from posttrain.run.folder import RunFolder, git_commit
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.train.wandb_log import WandbLog

PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "wandb", "tensorboard")
STEPS = {"grpo": (1, 4), "dpo": (1, 7)}  # warm-up, measured
OVERRIDES = {
    # A quarter of the demo's batch: more steps in the time, and what a step adds weighs more in it.
    "grpo": ["training.per_device_train_batch_size=32"],
    # What saves work is left out, so that both sides do the same.
    "dpo": ["training.precompute_ref_log_probs=false", "training.train_sampling_strategy=random"],
}
SIDES = ("bare", "project", "tracked")
TRACKERS = ["wandb", "tensorboard"]
OFTEN = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step")
IN_STEP = (*OFTEN, "on_step_end", "on_log")


class Lengths:
    """The stream of completion lengths, started over for every training."""

    stream: Iterator[int] = iter(())

    def __iter__(self) -> "Lengths":
        return self

    def __next__(self) -> int:
        return next(self.stream)


def has_format(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward as a trl example would have it."""
    ends = re.compile(r"<answer>.*?</answer>\s*$", re.DOTALL)
    return [1.0 if ends.search(c[0]["content"]) else 0.0 for c in completions]


def is_correct(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Likewise."""
    actual = [re.search(r"<answer>(.*?)</answer>", c[0]["content"]) for c in completions]
    return [
        2.0 if match and match.group(1).strip() == gold else 0.0
        for match, gold in zip(actual, answer, strict=True)
    ]


class Meter:
    """Processor seconds spent inside the functions that it wraps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.process_time() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return timed

    def watch(self, trainer: Any) -> None:
        """Wrap the trainer's rewards and its callbacks, those that will be added too."""
        if hasattr(trainer, "reward_funcs"):
            trainer.reward_funcs = [self.wrap("rewards", f) for f in trainer.reward_funcs]
        add = trainer.add_callback

        def clocked(callback: Any) -> None:
            for event in IN_STEP:
                setattr(callback, event, self.wrap("callbacks", getattr(callback, event)))

        def add_timed(callback: Any) -> None:
            clocked(callback)
            add(callback)

        for callback in trainer.callback_handler.callbacks:
            clocked(callback)
        trainer.add_callback = add_timed


def build_bare(task: str, settings: Any, folder: Path) -> tuple[Any, Callable[[], Any]]:
    """Unsloth's model in trl's trainer."""
    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, False)
    rows = load_rows(task, settings, tokenizer)
    own = {"output_dir": str(folder), "report_to": "none", "disable_tqdm": True}
    rewards = {"reward_funcs": [has_format, is_correct]} if task == "grpo" else {}
    with adapter.without_copy(model):
        trainer = trl_trainer(settings, rows, tokenizer, own, model=model, **rewards)
    return trainer, trainer.train


def build_run(
    task: str, settings: Any, folder: Path, tracked: bool
) -> tuple[Any, Callable[[], Any]]:
    """The script's trainer, trained as the script does, with trackers or without."""
    run = RunFolder(folder)
    run.open(fresh=False)
    choice = settings.tracking.model_copy(update={"report_to": TRACKERS if tracked else []})
    settings = settings.model_copy(update={"tracking": choice})
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    os.environ["WANDB_MODE"] = "offline" if tracked else "disabled"
    wandb = WandbLog(run, settings)
    wandb.start({"data": "0" * 64})
    trainer, train_it = build_project(Spec(task, "project", ""), settings, run)
    trainer.add_callback(wandb)

    def train() -> None:
        train_it()
        wandb.close(0)
        files = [*folder.glob("wandb/offline-run-*/*.wandb"), *folder.glob("tensorboard/events*")]
        assert len(files) == 2 * tracked, files

    return trainer, train


def measure(task: str, side: str, settings: Any, lengths: Lengths) -> dict[str, Any]:
    """One short training: medians of its steps, and what the side's own code took of them."""
    warmup, steps = STEPS[task]
    clock, meter = Clock(), Meter()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name) / "run"
        if side == "bare":
            trainer, train = build_bare(task, settings, folder)
        else:
            trainer, train = build_run(task, settings, folder, side == "tracked")
        meter.watch(trainer)
        trainer.add_callback(clock.callback())
        lengths.stream = recorded_lengths(getattr(settings.training, "max_completion_length", 1))
        started = processes()
        train()
        meter.seconds["processes"] = processes() - started
    taken = [[b[i] - a[i] for a, b in pairwise(clock.steps[warmup:])] for i in (0, 1)]
    return {
        "clock_seconds": statistics.median(taken[0]),
        "processor_seconds": statistics.median(taken[1]),
        "added_seconds": {k: v / (warmup + steps) for k, v in meter.seconds.items()},
        "seconds_after_last_step": (clock.ended or 0.0) - clock.steps[-1][0],
    }


def processes() -> float:
    """Processor seconds of the processes that this one started and that still run."""
    children = psutil.Process().children(recursive=True)
    return float(sum(sum(child.cpu_times()[:2]) for child in children))


def compare(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each side, and what each adds to the one before it."""
    result: dict[str, Any] = {"rounds": len(rounds)}
    for key in ("clock_seconds", "processor_seconds", "seconds_after_last_step"):
        result[key] = {
            side: round(statistics.median(row[side][key] for row in rounds), 4) for side in SIDES
        }
    for before, side in pairwise(SIDES):
        actual: dict[str, Any] = {}
        for what in ("clock", "processor"):
            key = f"{what}_seconds"
            ratios = [row[side][key] / row[before][key] - 1 for row in rounds]
            actual[f"whole_steps_by_{what}"] = {
                "median": round(statistics.median(ratios), 4),
                "interval_95": [round(end, 4) for end in interval(ratios)],
                "of_each_round": [round(ratio, 4) for ratio in ratios],
            }
        added = [(row[side]["added_seconds"], row[before]["added_seconds"]) for row in rounds]
        seconds = {
            name: statistics.median(more[name] - less.get(name, 0.0) for more, less in added)
            for name in added[0][0]
        }
        actual["timed_inside_the_step"] = {
            "seconds_a_step": {name: round(value, 6) for name, value in seconds.items()},
            "share": round(sum(seconds.values()) / result["processor_seconds"][before], 5),
        }
        result[f"{side}_over_{before}"] = actual
    return result


def interval(values: Sequence[float]) -> list[float]:
    """95% bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    return [float(end) for end in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))]


def main() -> int:
    command = parser(__doc__)
    command.add_argument("--rounds", type=int, default=24, help="turns of each side (default 24)")
    command.add_argument("--task", choices=("grpo", "dpo"), help="only this script")
    arguments = command.parse_args()
    runtime.start(verbose=False, threads=1)
    lengths = Lengths()
    result: dict[str, Any] = {
        "what": "seconds a training step, demo model, CPU, one thread",
        **machine(PACKAGES),
        "commit": git_commit(),
    }
    for task in [task for task in ("dpo", "grpo") if arguments.task in (None, task)]:
        path = ROOT / "configs" / f"{task}_demo.yaml"
        short = [f"training.max_steps={sum(STEPS[task])}", "training.save_steps=1000"]
        settings: Any = load_settings(SETTINGS[task], path, [*OVERRIDES[task], *short])
        if task == "grpo":
            force_lengths(lengths, [pretrained.load_tokenizer(settings.model).eos_token_id])
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds + 1):
            sides = SIDES[::-1] if number % 2 else SIDES
            rounds.append({side: measure(task, side, settings, lengths) for side in sides})
            print(f"{task} {number}/{arguments.rounds}", file=sys.stderr, flush=True)
        result[task] = compare(rounds[1:])  # the first has what a process does once
    return finish(result, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
