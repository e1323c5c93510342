"""Seconds from the command to the first optimizer step, by stage, on this machine.

    python bench/startup.py --output bench/results/startup_cpu.json

Runs the real main() of the script in a process of its own, with a clock around what it calls; the
run ends after one step. A stage counts what no inner stage counts. Seconds of the processor are
given beside those of the clock, which other work on the machine disturbs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.command import finish, machine, parser

CONFIGS = ("configs/grpo_demo.yaml", "configs/dpo_demo.yaml")
STAGES = (
    *("python and settings", "data", "import Unsloth, trl, torch", "load tokenizer"),
    *("tokenise", "load model", "score before", "build trainer", "first step", "other"),
)
STARTED = "BENCH_STARTED"  # wall clock, set by whoever starts the process


class Stages:
    """Time by stage; an inner stage's time is not the outer's."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open: list[str] = ["other"]
        self._last = (float(os.environ[STARTED]), 0.0)

    def switch(self) -> None:
        """Add what passed since the last switch to the innermost stage."""
        now = (time.time(), time.process_time())
        total = self.seconds.setdefault(self._open[-1], [0.0, 0.0])
        for i in (0, 1):
            total[i] += now[i] - self._last[i]
        self._last = now

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count the time inside owner.name as the stage."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self.switch()
            self._open.append(stage)
            try:
                return inner(*arguments, **named)
            finally:
                self.switch()
                self._open.pop()

        setattr(owner, name, timed)


def worker(script_name: str, arguments: list[str]) -> int:
    """Run the script's main with a clock; prints the stages as the last line."""
    from posttrain.model import policy, pretrained, runtime
    from posttrain.train import loop as training
    from posttrain.train import session
    from scripts import dpo, grpo

    stages = Stages()
    stages._open.append("python and settings")
    script: Any = {"dpo": dpo, "grpo": grpo}[script_name]
    for owner, name, stage in (
        (script, "load_problems" if script is grpo else "load_pair_set", "data"),
        (runtime, "start", "import Unsloth, trl, torch"),
        (pretrained, "load_tokenizer", "load tokenizer"),
        (script, "fitting" if script is grpo else "examine", "tokenise"),
        (policy, "load", "load model"),
        (script.scoring, "score", "score before"),
        (script, "build_trainer", "build trainer"),
    ):
        stages.wrap(owner, name, stage)
    parse = session.parse_command_line

    def parsed(*given: Any, **named: Any) -> Any:
        command = parse(*given, **named)
        stages.switch()
        stages._open.pop()
        return command

    session.parse_command_line = parsed

    def train(trainer: Any, *_: Any, **__: Any) -> Any:
        stages.switch()
        stages._open.append("first step")
        trainer.train()
        stages.switch()
        print(json.dumps(stages.seconds))
        sys.stdout.flush()
        os._exit(0)

    training.train = train
    script.main(arguments)
    return 1


def measure(config: str) -> dict[str, list[float]]:
    """Stages of one start: {stage: [clock, processor]}."""
    name = "grpo" if "grpo" in config else "dpo"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", name, "--config", config]
        command += ["--output", f"{folder}/run", "training.max_steps=1"]
        actual = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"HF_HUB_OFFLINE": "1", **os.environ, STARTED: repr(time.time())},
        )
    if actual.returncode != 0:
        raise SystemExit(actual.stdout + actual.stderr)
    stages: dict[str, list[float]] = json.loads(actual.stdout.strip().splitlines()[-1])
    return stages


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2], sys.argv[3:])
    command = parser(__doc__)
    command.add_argument("--repetitions", type=int, default=3)
    arguments = command.parse_args()
    result: dict[str, Any] = {
        "what": "median seconds of each stage from the command to the end of the first step",
        **machine([]),
        "repetitions": arguments.repetitions,
    }
    for config in CONFIGS:
        runs = [measure(config) for _ in range(arguments.repetitions)]
        for run in runs:
            run["total"] = [sum(part[i] for part in run.values()) for i in (0, 1)]
        result[config] = {
            stage: {
                unit: round(statistics.median(run.get(stage, [0.0, 0.0])[i] for run in runs), 2)
                for i, unit in enumerate(("clock", "processor"))
            }
            for stage in (*STAGES, "total")
        }
    return finish(result, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
