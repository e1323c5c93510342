"""Our DPO command and trl's own `trl dpo`, side by side on the same model, pairs and settings.

    python bench/dpo.py --output bench/results/dpo_cpu.json
    python bench/dpo.py --gpu --model Qwen/Qwen2.5-0.5B-Instruct \\
        --config configs/dpo_french_16gb.yaml --steps 50

Each run is a process of its own; the sides take turns, and the one that goes first changes. Same
weights, token ids, batch, adapter, steps, learning rate, precision, loss and threads, no gradient
checkpointing. Ours runs twice: `first`, with nothing on disk, which scores the reference before
training, and `cached`, which finds the numbers of `first`, as any later run on these pairs does.

trl's script alone stops on a CPU, at a Triton kernel of its loss; there it gets the torch version
of that one function that Unsloth's CPU backend uses, and with it ours.

- `train`: seconds of the trainer's loop as it reports them; for `first` with the seconds of scoring
  the reference added. `pairs_per_second` is from these.
- `step`: median seconds between two steps.
- `command`: seconds of the whole process, imports included. Ours also scores eight pairs and writes
  four replies before and after, which trl's does not.
- `peak_mb`: peak resident memory of the process; with --gpu, `peak_gpu_mb` is torch's
  max_memory_allocated.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo")
SIDES = ("trl", "first", "cached")
# Each command, then what it took of the GPU.
TRL = """
import os
import sys
import torch
if not torch.cuda.is_available():
    os.environ["UNSLOTH_IS_PRESENT"] = "1"
    from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head
    patch_trl_fused_lm_head()
from trl.scripts.dpo import main, make_parser
main(*make_parser().parse_args_and_config(fail_with_unknown_args=True))
if torch.cuda.is_available():
    print("peak_gpu_mb", torch.cuda.max_memory_allocated() / 2**20)
"""
OURS = """
import sys
sys.path.insert(0, "")
from scripts.dpo import main
code = main(sys.argv[1:])
import torch
if torch.cuda.is_available():
    print("peak_gpu_mb", torch.cuda.max_memory_allocated() / 2**20)
sys.exit(code)
"""


def load(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """The settings of both sides, and the overrides that give them to our command."""
    from posttrain.settings import DPOSettings
    from posttrain.settings.command import load_settings

    overrides = [
        f"training.max_steps={arguments.steps}",
        f"training.save_steps={10 * arguments.steps}",
        "training.loss_type=[sigmoid]",
        "training.gradient_checkpointing=false",
        "evaluation.limit=8",
        "evaluation.replies=4",
        *arguments.overrides,
    ]
    if arguments.threads:
        overrides.append(f"run.threads={arguments.threads}")
    if arguments.model:
        overrides.append(f"model.name={arguments.model}")
    return load_settings(DPOSettings, arguments.config, overrides), overrides


def write_pairs(settings: Any, folder: Path) -> int:
    """The rows that our command trains on, as text that trl's splits into the same token ids."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # the tokenizer needs none
    from posttrain.data.pairs import load_pair_set
    from posttrain.model import pretrained
    from scripts import dpo

    tokenizer = pretrained.load_tokenizer(settings.model)
    pairs = load_pair_set(settings.data, settings.prompt)
    _, lengths = dpo.examine(pairs, tokenizer, settings)
    train, _ = dpo.fitting(pairs, lengths, settings)
    folder.mkdir()
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for row in dpo.trainer_rows(train, tokenizer):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(train)


def trl_command(settings: Any, rows: Path, output: Path) -> list[str]:
    from posttrain.model.pretrained import local_or_hub

    training, lora, model = settings.training, settings.lora, settings.model
    optim = training.optim.replace("adamw_torch", "adamw_torch_fused")  # as Unsloth on a CPU
    options = {
        "model_name_or_path": local_or_hub(model.name),
        "dtype": model.dtype,
        "load_in_4bit": model.load_in_4bit,
        "dataset_name": rows,
        "output_dir": output,
        "max_length": model.max_seq_length,
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_steps,
        "optim": optim,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "bf16": training.bf16,
        "fp16": training.fp16,
        "gradient_checkpointing": training.gradient_checkpointing,
        "beta": training.beta,
        "loss_type": training.loss_type[0],
        "seed": training.seed,
        "logging_steps": 1,
        "save_steps": training.save_steps,
        "report_to": "none",
        "disable_tqdm": True,
        "use_peft": True,
        "lora_r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
    }
    command = [sys.executable, "-u", "-c", TRL]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return [*command, "--lora_target_modules", *lora.target_modules]


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
    result = {
        "command": time.perf_counter() - started,
        "processor": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "lines": lines,
    }
    gpu = re.search(r"^peak_gpu_mb (\S+)", "".join(line for _, line in lines), re.MULTILINE)
    return result | ({"peak_gpu_mb": float(gpu[1])} if gpu else {})


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
    with open(output / "metrics.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    steps = [row["seconds"] for row in rows if "loss" in row]
    margins = [row["rewards/margins"] for row in rows if "loss" in row]
    train = rows[-1]["train_runtime"] + reference
    return actual | {"train": train, "reference": reference} | of_steps(steps, margins)


def of_steps(at: list[float], margins: list[float]) -> dict[str, float]:
    between = [later - earlier for earlier, later in itertools.pairwise(at[2:])]
    return {"step": statistics.median(between), "last_margins": statistics.mean(margins[-5:])}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings, overrides = load(arguments)
    pairs = write_pairs(settings, folder / "pairs")
    threads = {"OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else {}
    actual: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repetition in range(arguments.repetitions):
        order = SIDES if repetition % 2 == 0 else (*SIDES[1:], SIDES[0])
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for side in order:
            output = folder / f"{side}-{repetition}"
            if side == "trl":
                result = run_trl(trl_command(settings, folder / "pairs", output), threads)
            else:
                command = [sys.executable, "-u", "-c", OURS, "--config", str(arguments.config)]
                command += ["--output", str(output), *overrides]
                environment = {**threads, "POSTTRAIN_CACHE": str(folder / "cache")}
                result = run_ours(command, environment, output)
                assert (result["reference"] > 0) == (side == "first"), "the cache was not as meant"
            actual[side].append(result)
            print(f"{repetition} {side:6}", {k: round(v, 3) for k, v in result.items()}, flush=True)
    return {
        "pairs": pairs,
        "steps": arguments.steps,
        "batch": settings.training.per_device_train_batch_size
        * settings.training.gradient_accumulation_steps,
        **summary(actual, settings, arguments.steps),
    }


def summary(actual: dict[str, list[dict[str, Any]]], settings: Any, steps: int) -> dict[str, Any]:
    """Medians of each side, and how many times trl's seconds are ours, pair by pair of runs."""
    training = settings.training
    trained = steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    sides = {}
    for side, runs in actual.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        sides[side] = {
            "pairs_per_second": round(trained / medians["train"], 2),
            "median": {key: round(value, 3) for key, value in medians.items()},
            "train": [round(run["train"], 2) for run in runs],
            "step": [round(run["step"], 4) for run in runs],
        }
    times = {
        side: {
            key: [
                round(a[key] / b[key], 3) for a, b in zip(actual["trl"], actual[side], strict=True)
            ]
            for key in ("train", "step", "command", "processor", "peak_mb")
        }
        for side in SIDES[1:]
    }
    return {
        "sides": sides,
        "trl_over_ours": {
            side: {key: round(statistics.median(v), 2) for key, v in ratios.items()}
            for side, ratios in times.items()
        },
        "trl_over_ours_each": times,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "dpo_demo.yaml")
    parser.add_argument("--model", help="another model than the config's")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the processor (default: torch's choice)")
    parser.add_argument("--gpu", action="store_true", help="stop where there is no CUDA")
    parser.add_argument("--output", type=Path, help="where to write the JSON result")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for both sides")
    arguments = parser.parse_intermixed_args()
    gpu = "cpu only"
    if arguments.gpu:
        try:
            query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            gpu = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            print("--gpu: there is no NVIDIA GPU here", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(arguments, Path(folder))
    result = {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {gpu}",
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        **measured,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
