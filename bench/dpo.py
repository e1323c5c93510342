"""Our DPO command and trl's own `trl dpo`, side by side on the same model, pairs and settings.

    python bench/dpo.py --threads 1 --output bench/results/dpo_cpu.json

On a CPU, with the demo's config; each run is a process of its own; the sides take turns, and the
one that goes first changes. Same weights, token ids, batch, adapter, steps, learning rate,
precision, loss and threads, no gradient checkpointing. Ours runs twice: `first`, with nothing on
disk, which scores the reference before training, and `cached`, which finds the numbers of `first`,
as any later run on these pairs does.

trl's script alone stops on a CPU, at a Triton kernel of its loss; it gets the torch version of that
one function that Unsloth's CPU backend uses, and with it ours.

- `train`: seconds of the trainer's loop as it reports them; for `first` with the seconds of scoring
  the reference added. `pairs_per_second` is from these.
- `step`: median seconds between two steps.
- `command`: seconds of the whole process, imports included. Ours also scores eight pairs and writes
  four replies before and after, which trl's does not.
- `peak_mb`: peak resident memory of the process.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.command import finish, machine, parser
from posttrain.base.files import jsonl_rows

CONFIG = ROOT / "configs" / "dpo_demo.yaml"
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo")
SIDES = ("trl", "first", "cached")
TRL = """
import os
os.environ["UNSLOTH_IS_PRESENT"] = "1"
from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head
patch_trl_fused_lm_head()
from trl.scripts.dpo import main, make_parser
main(*make_parser().parse_args_and_config(fail_with_unknown_args=True))
"""
# trl's options that have our names and values.
SAME = {
    "model": ("dtype", "load_in_4bit"),
    "training": (
        *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
        *("optim", "bf16", "fp16", "gradient_checkpointing", "beta", "seed", "save_steps"),
    ),
}


def write_pairs(settings: Any, folder: Path) -> int:
    """The rows that our command trains on, as text that trl's splits into the same token ids."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # the tokenizer needs none
    from bench.sides import load_rows
    from posttrain.model import pretrained
    from scripts import dpo

    tokenizer = pretrained.load_tokenizer(settings.model)
    rows = dpo.trainer_rows(load_rows("dpo", settings, tokenizer), tokenizer)
    folder.mkdir()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(rows)


def trl_command(settings: Any, rows: Path, output: Path) -> list[str]:
    from posttrain.model.pretrained import local_or_hub

    options = {
        "model_name_or_path": local_or_hub(settings.model.name),
        "dataset_name": rows,
        "output_dir": output,
        "max_length": settings.model.max_seq_length,
        "loss_type": settings.training.loss_type[0],
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_peft": True,
        "lora_r": settings.lora.r,
        "lora_alpha": settings.lora.alpha,
        "lora_dropout": settings.lora.dropout,
    }
    for section, names in SAME.items():
        options |= {name: getattr(getattr(settings, section), name) for name in names}
    command = [sys.executable, "-u", "-c", TRL]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return [*command, "--lora_target_modules", *settings.lora.target_modules]


def execute(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run to the end; the lines it printed, when each came, its seconds and peak memory."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment},
    )
    assert process.stdout is not None
    lines = [(time.perf_counter() - started, line) for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("".join(line for _, line in lines[-40:]) + f"\n{command} failed")
    return {
        "command": time.perf_counter() - started,
        "processor": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "lines": lines,
    }


def run_trl(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    actual = execute(command, environment)
    steps = [at for at, line in actual["lines"] if line.startswith("{'loss'")]
    text = "".join(line for _, line in actual.pop("lines"))
    margins = [float(value) for value in re.findall(r"'rewards/margins': '?([^',}]+)", text)]
    (train,) = re.findall(r"'train_runtime': '?([\d.]+)", text)
    return actual | {"train": float(train)} | of_steps(steps, margins)


def run_ours(command: list[str], environment: dict[str, str], output: Path) -> dict[str, Any]:
    actual = execute(command, environment)
    text = "".join(line for _, line in actual.pop("lines"))
    computed = re.search(r"Reference log-probabilities: computed in ([\d.]+) s", text)
    reference = float(computed[1]) if computed else 0.0
    rows = jsonl_rows(output / "metrics.jsonl")
    steps = [row["seconds"] for row in rows if "loss" in row]
    margins = [row["rewards/margins"] for row in rows if "loss" in row]
    train = rows[-1]["train_runtime"] + reference
    return actual | {"train": train, "reference": reference} | of_steps(steps, margins)


def of_steps(at: list[float], margins: list[float]) -> dict[str, float]:
    between = [later - earlier for earlier, later in itertools.pairwise(at[2:])]
    return {"step": statistics.median(between), "last_margins": statistics.mean(margins[-5:])}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from posttrain.settings import DPOSettings
    from posttrain.settings.command import load_settings

    overrides = [
        f"training.max_steps={arguments.steps}",
        f"training.save_steps={10 * arguments.steps}",
        "training.loss_type=[sigmoid]",
        "training.gradient_checkpointing=false",
        "evaluation.limit=8",
        "evaluation.replies=4",
        f"run.threads={arguments.threads}",
    ]
    settings = load_settings(DPOSettings, CONFIG, overrides)
    pairs = write_pairs(settings, folder / "pairs")
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    actual: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repetition in range(arguments.repetitions):
        order = SIDES if repetition % 2 == 0 else (*SIDES[1:], SIDES[0])
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for side in order:
            output = folder / f"{side}-{repetition}"
            if side == "trl":
                result = run_trl(trl_command(settings, folder / "pairs", output), threads)
            else:
                command = [sys.executable, "-u", "scripts/dpo.py", "--config", str(CONFIG)]
                command += ["--output", str(output), *overrides]
                environment = {**threads, "POSTTRAIN_CACHE": str(folder / "cache")}
                result = run_ours(command, environment, output)
                assert (result["reference"] > 0) == (side == "first"), "the cache was not as meant"
            actual[side].append(result)
            print(f"{repetition} {side:6}", {k: round(v, 3) for k, v in result.items()}, flush=True)
    training = settings.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    sizes = {"pairs": pairs, "steps": arguments.steps, "batch": batch}
    return {**sizes, **summary(actual, arguments.steps * batch)}


def summary(actual: dict[str, list[dict[str, Any]]], trained: int) -> dict[str, Any]:
    """Medians of each side, and how many times trl's seconds are ours, pair by pair of runs."""
    sides = {}
    for side, runs in actual.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        sides[side] = {
            "pairs_per_second": round(trained / medians["train"], 2),
            "median": {key: round(value, 3) for key, value in medians.items()},
            "train": [round(run["train"], 2) for run in runs],
            "step": [round(run["step"], 4) for run in runs],
        }
    over = {}
    for side in SIDES[1:]:
        runs_of_both = list(zip(actual["trl"], actual[side], strict=True))
        over[side] = {
            key: round(statistics.median(trl[key] / own[key] for trl, own in runs_of_both), 2)
            for key in ("train", "step", "command", "processor", "peak_mb")
        }
    return {"sides": sides, "trl_over_ours": over}


def main() -> int:
    command = parser(__doc__)
    command.add_argument("--steps", type=int, default=60)
    command.add_argument("--repetitions", type=int, default=5)
    command.add_argument("--threads", type=int, default=1, help="of the processor")
    arguments = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, Path(folder))
    own = {"threads": arguments.threads, "repetitions": arguments.repetitions}
    return finish({**machine(PACKAGES), **own, **measured}, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
