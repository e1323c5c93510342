"""What this project adds to a training step of bare Unsloth + trl, on a CPU with the demo model.

    python tests/bench/step_overhead.py --output tests/bench/results/step_overhead_cpu.json

Two sides on the same Unsloth model, the same trl trainer, arguments, data and completion lengths:
- `project`: build_trainer of the script and training.train, with everything that a run has on:
  metrics.jsonl, progress bar, sample records, reward statistics, early stops;
- `bare`: Unsloth's model, trl's trainer, two reward functions of a few lines, `trainer.train()`.

The sides take turns, many short trainings each, the order changing every round. Given are seconds
of the clock and of the processor (which other work on the machine disturbs less): the median of the
rounds' ratios, and how far they spread. As the spread of whole steps on a shared machine is of the
size of what is looked for, the project's own code is also timed by itself, inside the step:
callbacks and rewards, by the processor's seconds, less what the bare rewards take.

Saves are left out of the steps: `seconds_after_last_step` has the one at the end.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts import dpo, grpo
from scripts.common import config, data, policy, tracking, training
from tests.bench.lengths import force_lengths, recorded_lengths
from tests.bench.sides import SCRIPTS, SETTINGS
from tests.bench.watch import Clock

PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth")
STEPS = {"grpo": (2, 6), "dpo": (2, 12)}  # warm-up, measured
# A quarter of the demo's batch: more steps in the time, and what a step adds weighs more in them.
SMALL = {"grpo": ["training.per_device_train_batch_size=32"], "dpo": []}
OFTEN = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step")
IN_STEP = (*OFTEN, "on_step_end", "on_log")


class Lengths:
    """The stream of completion lengths, started over for every training."""

    def __init__(self) -> None:
        self._stream: Iterator[int] = iter(())

    def restart(self, limit: int) -> None:
        self._stream = recorded_lengths(limit)

    def __iter__(self) -> "Lengths":
        return self

    def __next__(self) -> int:
        return next(self._stream)


def has_format(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward as a trl example would have it."""
    ends = re.compile(r"<answer>.*?</answer>\s*$", re.DOTALL)
    return [1.0 if ends.search(c[0]["content"]) else 0.0 for c in completions]


def is_correct(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Likewise."""
    found = [re.search(r"<answer>(.*?)</answer>", c[0]["content"]) for c in completions]
    return [
        2.0 if match and match.group(1).strip() == gold else 0.0
        for match, gold in zip(found, answer, strict=True)
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
        """Wrap the trainer's rewards, and every callback that is added from now on."""
        if hasattr(trainer, "reward_funcs"):
            trainer.reward_funcs = [self.wrap("rewards", f) for f in trainer.reward_funcs]
        add = trainer.add_callback

        def add_timed(callback: Any) -> None:
            for event in IN_STEP:
                setattr(callback, event, self.wrap("callbacks", getattr(callback, event)))
            add(callback)

        trainer.add_callback = add_timed


def build_bare(task: str, settings: Any, folder: Path) -> tuple[Any, Callable[[], Any]]:
    """Unsloth's model in trl's trainer."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, False)
    own: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "disable_tqdm": True}
    if task == "grpo":
        problems, _ = data.load_problems(settings.data)
        own["reward_weights"] = list(settings.rewards.values())
        arguments, _ = training.build_arguments(GRPOConfig, settings.training, own, False)
        rows = [
            {"prompt": grpo.conversation(p.question, settings.prompt.system), "answer": p.answer}
            for p in problems
        ]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[has_format, is_correct],
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    else:
        pairs, _ = data.load_pairs(settings.data, settings.prompt)
        own["max_length"] = settings.model.max_seq_length
        arguments, _ = training.build_arguments(DPOConfig, settings.training, own, False)
        trainer = DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(dpo.trainer_rows(pairs, tokenizer)),
            processing_class=tokenizer,
        )
    policy.drop_reference_copy(model)
    return trainer, trainer.train


def build_project(task: str, settings: Any, folder: Path) -> tuple[Any, Callable[[], Any]]:
    """The script's trainer, trained as the script does."""
    run = tracking.RunFolder(folder)
    run.open(fresh=False)
    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, False)
    if task == "grpo":
        problems, _ = data.load_problems(settings.data)
        functions = grpo.load_rewards(settings, problems[0])
        trainer, _ = grpo.build_trainer(model, tokenizer, problems, settings, functions, run)
    else:
        pairs, _ = data.load_pairs(settings.data, settings.prompt)
        trainer, _ = dpo.build_trainer(model, tokenizer, pairs, settings, run)
    shown = SCRIPTS[task].PROGRESS
    return trainer, lambda: training.train(trainer, settings, run, shown, None, {})


def measure(task: str, side: str, settings: Any, lengths: Lengths) -> dict[str, Any]:
    """One short training: medians of its steps, and what the side's own code took of them."""
    build = build_project if side == "project" else build_bare
    warmup, steps = STEPS[task]
    clock, meter = Clock(), Meter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer, train = build(task, settings, Path(folder) / "run")
        trainer.add_callback(clock.callback())
        meter.watch(trainer)
        if task == "grpo":
            lengths.restart(settings.training.max_completion_length)
        train()
    measured = clock.steps[warmup:]
    taken = [[b[i] - a[i] for a, b in pairwise(measured)] for i in (0, 1)]
    return {
        "clock_seconds": statistics.median(taken[0]),
        "processor_seconds": statistics.median(taken[1]),
        "own_code_seconds": {k: v / (warmup + steps) for k, v in meter.seconds.items()},
        "seconds_after_last_step": (clock.ended or 0.0) - clock.steps[-1][0],
    }


def compare(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians and the overhead of the project over the bare loop."""

    def column(side: str, key: str) -> list[float]:
        return [row[side][key] for row in rounds]

    result: dict[str, Any] = {"rounds": len(rounds)}
    for key in ("clock_seconds", "processor_seconds", "seconds_after_last_step"):
        result[key] = {
            side: round(statistics.median(column(side, key)), 4) for side in ("project", "bare")
        }
    for key, what in (("clock_seconds", "clock"), ("processor_seconds", "processor")):
        ratios = [row["project"][key] / row["bare"][key] - 1 for row in rounds]
        low, high = interval(ratios)
        result[f"overhead_by_{what}"] = {
            "median": round(statistics.median(ratios), 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "of_each_round": [round(ratio, 4) for ratio in ratios],
        }
    own = {
        side: statistics.median(sum(row[side]["own_code_seconds"].values()) for row in rounds)
        for side in ("project", "bare")
    }
    step = statistics.median(column("bare", "processor_seconds"))
    parts = {
        name: round(
            statistics.median(r["project"]["own_code_seconds"].get(name, 0) for r in rounds), 6
        )
        for name in ("callbacks", "rewards")
    }
    result["own_code"] = {
        "seconds_a_step": parts,
        "bare_rewards_seconds_a_step": round(own["bare"], 6),
        "overhead": round((own["project"] - own["bare"]) / step, 5),
    }
    return result


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default 9)")
    parser.add_argument("--task", choices=("grpo", "dpo"), help="only this script")
    parser.add_argument("--output", type=Path, help="where to write the JSON result")
    arguments = parser.parse_args()
    policy.start(verbose=False, threads=1)
    lengths = Lengths()
    result: dict[str, Any] = {
        "what": "seconds a training step, demo model, CPU, one thread",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "cpus": os.cpu_count(),
        "commit": tracking.git_commit(),
    }
    ends: list[int] = []
    for task in [task for task in ("dpo", "grpo") if arguments.task in (None, task)]:
        path = ROOT / "configs" / f"{task}_demo.yaml"
        steps = [*SMALL[task], f"training.max_steps={sum(STEPS[task])}", "training.save_steps=1000"]
        settings = config.load_settings(SETTINGS[task], path, steps)
        if task == "grpo" and not ends:
            tokenizer = policy.load_tokenizer(settings.model)
            ends = [tokenizer.eos_token_id]
            force_lengths(lengths, ends)
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds + 1):
            sides = ("project", "bare") if number % 2 else ("bare", "project")
            rounds.append({side: measure(task, side, settings, lengths) for side in sides})
            print(f"{task} {number}/{arguments.rounds}", file=sys.stderr, flush=True)
        result[task] = compare(rounds[1:])  # the first has what a process does once
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
