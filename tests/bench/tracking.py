"""What tracking costs: the GRPO demo with W&B (offline) and TensorBoard, and with neither.

    python tests/bench/tracking.py --output tests/bench/results/tracking_cpu.json

Two measures, as a share of a step:
- `accounted`: the processor's seconds spent on tracking, added up where they are spent: inside the
  calls to W&B and TensorBoard, in the threads they start, and in W&B's own process. What little
  such threads and processes take without tracking is not taken off, so this errs upwards.
- `side_by_side`: runs take turns, each in a process of its own, one thread, the same seed; step n
  does the same work on both sides, so steps are compared in pairs. The interval is that of the
  median (bootstrap, 95%): on a machine with other work it is wide.

The first step, with its first-time costs, is left out.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CONFIG = ROOT / "configs" / "grpo_demo.yaml"
PACKAGES = ("wandb", "tensorboard", "trl", "transformers", "torch")
TRACKED = ["tracking.report_to=[wandb, tensorboard]"]


def one_run(folder: Path, steps: int, tracked: bool) -> None:
    """Train in this process; write the clocks at every line of metrics.jsonl."""
    import psutil

    from scripts import grpo
    from scripts.common import integrations, wandb_log
    from scripts.common.tracking import Clock

    marks: list[dict[str, float]] = []
    spent = {"calls_cpu": 0.0, "calls_wall": 0.0}
    seconds = Clock.seconds
    this = psutil.Process()

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent["calls_cpu"] += time.thread_time() - cpu
                spent["calls_wall"] += time.perf_counter() - wall

        return call

    def marked(clock: Clock) -> float:
        threads = sum(t.user_time + t.system_time for t in this.threads() if t.id != this.pid)
        children = sum(sum(c.cpu_times()[:2]) for c in this.children(recursive=True))
        marks.append(
            {
                "wall": time.perf_counter(),
                "cpu": time.process_time() + children,
                "threads_cpu": threads,
                "processes_cpu": children,
                **spent,
            }
        )
        return seconds(clock)

    start = integrations.start

    def start_and_count(*arguments: Any) -> Any:  # once Unsloth is imported
        from transformers.integrations import TensorBoardCallback

        TensorBoardCallback.on_log = counted(TensorBoardCallback.on_log)
        return start(*arguments)

    Clock.seconds = marked  # type: ignore[assignment]
    integrations.start = start_and_count
    for name in ("metrics", "tables"):
        setattr(wandb_log.WandbLog, name, counted(getattr(wandb_log.WandbLog, name)))
    arguments = ["--config", str(CONFIG), "--output", str(folder), f"training.max_steps={steps}"]
    arguments += ["training.save_steps=5", "evaluation.limit=16", "run.threads=1"]
    assert grpo.main([*arguments, *(TRACKED if tracked else [])]) == 0
    (folder / "marks.json").write_text(json.dumps(marks[:steps]))


def timed(tracked: bool, steps: int) -> list[dict[str, float]]:
    """The seconds of each step but the first, of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        mode = "offline" if tracked else "disabled"
        subprocess.run(
            [sys.executable, __file__, "--child", str(run), "--steps", str(steps)]
            + (["--tracked"] if tracked else []),
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "WANDB_MODE": mode, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        if tracked:
            assert list(run.glob("wandb/offline-run-*/*.wandb"))
            assert list(run.glob("tensorboard/events*"))
        marks = json.loads((run / "marks.json").read_text())
    return [
        {kind: late[kind] - early[kind] for kind in early}
        for early, late in itertools.pairwise(marks)
    ]


def accounted(on: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of the processor a step spent on tracking, and their share of all of a step's."""
    parts = {
        name: statistics.fmean(step[name] for step in on)
        for name in ("calls_cpu", "threads_cpu", "processes_cpu")
    }
    step = statistics.fmean(step["cpu"] for step in on)
    return {
        **{f"{name}_seconds": round(value, 5) for name, value in parts.items()},
        "step_cpu_seconds": round(step, 4),
        "share_of_a_step": round(sum(parts.values()) / step, 5),
        "calls_share_of_the_clock": round(
            sum(step["calls_wall"] for step in on) / sum(step["wall"] for step in on), 5
        ),
    }


def side_by_side(
    off: list[dict[str, float]], on: list[dict[str, float]], kind: str
) -> dict[str, Any]:
    shares = [b[kind] / a[kind] - 1 for a, b in zip(off, on, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(shares, k=len(shares))) for _ in range(2000))
    return {
        "step_seconds_without": round(statistics.median(step[kind] for step in off), 4),
        "step_seconds_with": round(statistics.median(step[kind] for step in on), 4),
        "median_paired_share": round(statistics.median(shares), 4),
        "interval": [round(medians[50], 4), round(medians[-51], 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tracked", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        one_run(arguments.child, arguments.steps, arguments.tracked)
        return
    off: list[dict[str, float]] = []
    on: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        for tracked in order:
            (on if tracked else off).extend(timed(tracked, arguments.steps))
    result = {
        "what": "GRPO demo, W&B offline + TensorBoard against neither, paired by step",
        "steps_a_side": len(off),
        "accounted": accounted(on),
        "side_by_side": {
            "processor": side_by_side(off, on, "cpu"),
            "clock": side_by_side(off, on, "wall"),
        },
        "load_average_at_the_end": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
