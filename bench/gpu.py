"""This project beside stock trl, on one GPU: seconds a step, tokens a second, memory, utilisation.

    python bench/gpu.py                          # DPO and GRPO at the shape of Qwen2.5-0.5B
    python bench/gpu.py --size cpu               # the same with the demo model, on any CPU
    python bench/gpu.py --size shape             # the 0.5B shape in 4 bits, cut for a CPU
    python bench/gpu.py --size real --model DIR  # real weights in the CPU configs' number type
    python bench/gpu.py --memory-limit 15        # does every config fit a 16 GB card?
    python bench/gpu.py --sweep                  # each lever of levers.py, one at a time
    python bench/gpu.py training.optim=adamw_torch_fused     # changes the project's side

Each measurement is a process of its own (see side.py for the sides); they take turns, the order of
the sides changing with every round. Weights are random at the exact shape, the tokenizer and the
data are real, and completions are forced to recorded lengths. Results are written as they come:
the same command goes on where a run was cut. Measured:

- seconds a step: median over `--steps` steps after `--warmup`, from the end of one optimizer step
  to the end of the next, with data loading, logging and callbacks;
- rates: completions, pairs or tokens of the measured steps, at the speed of the median step;
- model FLOP utilisation: FLOPs that the model needs (devices.py has the formula; what gradient
  checkpointing repeats is not counted) a second, as a share of the card's 16-bit peak;
- bandwidth utilisation of decoding: bytes of weights, once a decoding step, and of keys and values
  of the rows still being written, a second of generation, as a share of the card's bandwidth;
- peaks of memory since the process started, by PyTorch's allocator.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.command import parser
from bench.levers import LEVERS
from posttrain.base.files import write_text
from posttrain.model.shape import KNOWN
from posttrain.settings.strict_yaml import read_yaml
from tests.helpers import SHARED
from tests.pretend_gpu import installed

QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
SIDES = ("project", "stock", "stock_16bit")
CARD = {"grpo": "configs/grpo_gsm8k_16gb.yaml", "dpo": "configs/dpo_french_16gb.yaml"}
CONFIGS = {
    "gpu": CARD,
    "shape": {"grpo": CARD["grpo"]},
    "real": {"grpo": "configs/grpo_gsm8k_cpu.yaml", "dpo": "configs/dpo_french_cpu.yaml"},
    "cpu": {"grpo": "configs/grpo_demo.yaml", "dpo": "configs/dpo_demo.yaml"},
}
FITTED = tuple(
    f"configs/{path.name}"
    for kind in ("16gb", "t4")
    for path in sorted((ROOT / "configs").glob(f"*_{kind}.yaml"))
)
CUTS = {
    # The demo's batches, cut so that a step on a CPU takes about a second.
    ("cpu", "grpo"): ["training.per_device_train_batch_size=32"],
    # What a CPU does with the 0.5B shape in about a minute a step.
    ("shape", "grpo"): [
        "training.per_device_train_batch_size=16",
        "training.gradient_accumulation_steps=1",
        "training.max_completion_length=24",
        "training.optim=adamw_torch_fused",
        "training.bf16=false",
    ],
    # A step of the CPU configs, cut to a few minutes: replies of at most 96 tokens.
    ("real", "grpo"): [
        "training.per_device_train_batch_size=16",
        "training.gradient_accumulation_steps=1",
        "training.max_completion_length=96",
    ],
    ("real", "dpo"): ["training.gradient_accumulation_steps=2"],
}
RESULTS = Path(__file__).parent / "results"
SUMMED_UP = (
    *("seconds_a_step", "process_seconds_a_step"),
    *("completions_a_second", "pairs_a_second", "tokens_a_second"),
    *("peak_allocated_gib", "peak_reserved_gib", "peak_rss_gib", "model_flops_utilisation"),
    *("generation_share_of_step", "generation_bandwidth_utilisation"),
)


@dataclass(frozen=True)
class Job:
    """A measurement and what it is called in the results."""

    part: str
    """compare, fit or lever."""
    name: str
    round: int
    spec: dict[str, Any]

    def key(self, folders: dict[str, str]) -> str:
        """The same job gives the same key, whenever and wherever it is run."""
        text = json.dumps([self.part, self.name, self.round, self.spec], sort_keys=True)
        return hashlib.sha256(hide(text, folders).encode()).hexdigest()[:16]


def hide(text: str, folders: dict[str, str]) -> str:
    """The text with this machine's folders under the names that they have in `folders`."""
    for folder, name in sorted(folders.items(), key=lambda item: len(item[0]), reverse=True):
        text = text.replace(folder, name)
    return text


# --- what to measure ------------------------------------------------------------------------------


def data_overrides(task: str, size: str, folder: Path | None, model: Path | None) -> list[str]:
    """Where the model and the data are on this machine."""
    cut = CUTS.get((size, task), [])
    if size == "cpu":
        return list(cut)
    assert folder and model
    if task == "grpo":
        return [
            *cut,
            # Not the real rewards: where a group is flat, this project skips its training passes.
            f"rewards={{'{ROOT}/bench/spread.py:length': 1.0}}",
            f"model.name={model}",
            f"data.train={{path: '{folder}/gsm8k/train.jsonl'}}",
            f"data.eval={{path: '{folder}/gsm8k/test.jsonl'}}",
        ]
    few = ", limit: 60" if size == "real" else ""  # the reference scores each pair once
    return [
        *cut,
        f"model.name={model}",
        f"data.train={{path: '{folder}/french-preferences/preferences.json'{few}}}",
        "data.columns={prompt: instruction, chosen: chosen, rejected: rejected}",
        "data.format=columns",
        "data.holdout=20",
        "data.validation=0",
    ]


def model_of(config: str, model: Path | None) -> Path | None:
    """The random model for a config: `model` for the 0.5B, one beside it for other sizes."""
    name = read_yaml(ROOT / config)["model"]["name"]
    if model is None or name not in KNOWN or name == QWEN:
        return model
    return model.with_name(f"{name.split('/')[1]}-random")


def plan(arguments: argparse.Namespace, folder: Path | None, model: Path | None) -> list[Job]:
    """The jobs, the most important first."""
    steps = {"cycles": arguments.steps, "warmup": arguments.warmup}

    def spec(task: str, side: str, config: str, overrides: Sequence[str] = (), **more: Any) -> Any:
        where = data_overrides(task, arguments.size, folder, model_of(config, model))
        if "chat_template_kwargs" in read_yaml(ROOT / config)["prompt"]:
            where.append("prompt.chat_template_kwargs={}")  # every tokenizer here is Qwen2.5's
        threads = [f"run.threads={arguments.threads}"] if arguments.threads else []
        values = {"task": task, "side": side, "config": config, **steps, **more}
        return {**values, "overrides": [*where, *threads, *overrides]}

    configs = CONFIGS[arguments.size]
    tasks = [task for task in configs if arguments.task in (None, task)]
    own = arguments.overrides
    jobs = []
    if arguments.memory_limit is not None:
        capped = {"memory_limit": arguments.memory_limit, "longest": True, "cycles": 2, "warmup": 1}
        for config in FITTED:
            task = "grpo" if "/grpo_" in config else "dpo"
            values = spec(task, "project", config, own, flash="t4" not in config, **capped)
            if task in tasks:
                jobs.append(Job("fit", config, 0, values))
        return jobs
    if arguments.sweep:
        for task in tasks:
            shipped = spec(task, "project", configs[task])
            jobs.append(Job("lever", f"{task}: as shipped", 0, shipped))
        for lever in [lever for lever in LEVERS if lever.task in tasks]:
            task, changes = lever.task, (*lever.overrides, *own)
            values = spec(task, "project", configs[task], changes, environment=lever.environment)
            jobs.append(Job("lever", f"{task}: {lever.name}", 0, values))
        return jobs
    for number in range(arguments.rounds):
        sides = [side for side in SIDES if side in arguments.sides]
        for side in reversed(sides) if number % 2 else sides:
            for task in tasks:
                values = spec(task, side, configs[task], own if side == "project" else [])
                jobs.append(Job("compare", f"{task}: {side}", number, values))
    # Project and stock of both scripts before the third side.
    return sorted(jobs, key=lambda job: (job.round, job.spec["side"] == "stock_16bit"))


# --- measuring ------------------------------------------------------------------------------------


def run_job(job: Job, work: Path, folders: dict[str, str], timeout: float) -> dict[str, Any]:
    """Run side.py on the job; what came of it, whatever that is: ok, failed or cut."""
    folder = work / job.key(folders)
    folder.mkdir(parents=True, exist_ok=True)
    spec, result, log = folder / "spec.json", folder / "result.json", folder / "log"
    result.unlink(missing_ok=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    spec.write_text(json.dumps(job.spec), encoding="utf-8")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "WANDB_MODE": "disabled",
        **os.environ,
        "BENCH_RUN": str(folder / "run"),
        **job.spec.get("environment", {}),
    }
    started = time.monotonic()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("side.py")), str(spec), str(result)],
            stdout=output,
            stderr=output,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=timeout)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    actual: dict[str, Any] = {"wall_seconds": round(time.monotonic() - started, 1)}
    if code == 0 and result.exists():
        text = hide(result.read_text(encoding="utf-8"), folders)
        return {"status": "ok", **actual, **json.loads(text)}
    printed = hide(log.read_text(encoding="utf-8", errors="replace"), folders)
    tail = printed.strip().splitlines()[-40:]
    if code is None:
        return {"status": "cut", **actual, "seconds_allowed": round(timeout), "log": tail[-5:]}
    return {"status": "failed", **actual, "exit_code": code, "error": tail[-1:], "log_tail": tail}


def device_name() -> str:
    """The first GPU's name, or CPU; asked for in a process of its own, which torch takes."""
    code = "from bench.side import device_name; print(device_name())"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    return printed.strip().splitlines()[-1]


def make_model(work: Path, tokenizer: Path, name: str = "qwen2.5-random", **shape: int) -> Path:
    """Random weights, made once in a process of its own: Qwen2.5-0.5B's shape but for `shape`."""
    folder = work / name
    if not (folder / "tokenizer_config.json").exists():  # the last thing to be written
        code = (
            "import json, sys; from pathlib import Path; from tests.helpers import make_qwen; "
            "make_qwen(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))"
        )
        command = [sys.executable, "-c", code, str(folder), str(tokenizer), json.dumps(shape)]
        subprocess.run(command, check=True, cwd=ROOT)
    return folder


# --- results --------------------------------------------------------------------------------------


def summary(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds by part and name, and how the project compares with stock trl."""
    names = list(dict.fromkeys((m["part"], m["name"]) for m in measurements))
    table: dict[str, Any] = {}
    for part, name in names:
        rows = [m for m in measurements if (m["part"], m["name"]) == (part, name)]
        done = [m for m in rows if m["status"] == "ok"]
        values: dict[str, Any] = {
            "status": "ok" if done else rows[-1]["status"],
            "rounds": len(done),
        }
        generation = [
            {f"generation_{key}": value for key, value in m.get("generation", {}).items()}
            for m in done
        ]
        for key in SUMMED_UP:
            seen = [row[key] for row in (*done, *generation) if row.get(key) is not None]
            if seen:
                values[key] = round(statistics.median(seen), 4)
        table.setdefault(part, {})[name] = values
    compared = table.get("compare", {})
    ratios = {}
    for task, rate in (("grpo", "completions_a_second"), ("dpo", "pairs_a_second")):
        own = compared.get(f"{task}: project", {})
        for side in SIDES[1:]:
            other = compared.get(f"{task}: {side}", {})
            if own.get(rate) and other.get(rate):
                times = round(own[rate] / other[rate], 3)
                ratios[f"{task}: project against {side}"] = {"times_the_rate": times}
    return {**table, "project_against": ratios}


def parse() -> argparse.Namespace:
    command = parser(__doc__)
    add = command.add_argument
    add("--size", choices=tuple(CONFIGS), default="gpu")
    add("--task", choices=("grpo", "dpo"), help="only this script")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add("--steps", type=int, default=5, help="measured steps (default 5)")
    add("--warmup", type=int, default=2, help="steps before them (default 2)")
    add("--threads", type=int, help="of the processor, on every side")
    add("--rounds", type=int, default=1, help="turns of every side (default 1)")
    add("--budget", type=float, help="seconds; what is left then waits for the next run")
    add("--memory-limit", type=float, help="GiB: try every config under this cap")
    add("--sweep", action="store_true", help="every lever of levers.py")
    add("--model", type=Path, help="model folder (default: made with random weights)")
    add("--work", type=Path, help="scratch folder (default: in the temporary folder)")
    add("overrides", nargs="*", metavar="section.key=value", help="project side only")
    return command.parse_intermixed_args()


def main() -> int:
    arguments = parse()
    until = time.monotonic() + (arguments.budget or float("inf"))
    work = arguments.work or Path(tempfile.gettempdir()) / "posttrain-bench"
    work.mkdir(parents=True, exist_ok=True)
    device = device_name()
    slug = "-".join(device.lower().split())
    output = arguments.output or RESULTS / f"gpu_{slug}.json"
    folder = model = None
    if arguments.size != "cpu":
        folder = SHARED
        if not folder.is_dir():
            raise SystemExit(f"error: no {folder} (gsm8k, french-preferences, qwen2.5-tokenizer)")
        if arguments.size == "real" and not arguments.model:
            raise SystemExit("error: --size real: name the folder of the real model with --model")
        model = arguments.model or make_model(work, folder / "qwen2.5-tokenizer")
        for config in FITTED if arguments.memory_limit is not None else ():
            name, own = read_yaml(ROOT / config)["model"]["name"], model_of(config, model)
            if own and own != model:
                shape = {key: size for key, size in KNOWN[name].items() if type(size) is int}
                make_model(own.parent, folder / "qwen2.5-tokenizer", own.name, **shape)
    result: dict[str, Any] = {"device": device, "pretended": installed(), "measurements": []}
    if output.exists():
        result = json.loads(output.read_text(encoding="utf-8"))
        if result["device"] != device:
            raise SystemExit(f"error: {output} is of {result['device']}; name another --output")
    measurements = result["measurements"]
    jobs = plan(arguments, folder, model)
    known = {"PROJECT": ROOT, "WORK": work, "DATA": folder, "MODEL": model}
    folders = {str(folder): name for name, folder in known.items() if folder}
    finished = {m["key"] for m in measurements if m["status"] != "cut"}
    left = [job for job in jobs if job.key(folders) not in finished]
    print(
        f"{device}: {len(left)} of {len(jobs)} measurements to take; results in {output}",
        flush=True,
    )
    unfinished = 0
    for job in left:
        remaining = until - time.monotonic()
        if remaining < 20:
            unfinished += 1
            continue
        actual = run_job(job, work, folders, min(remaining - 5, 1800.0))
        key = job.key(folders)
        measurements[:] = [m for m in measurements if m["key"] != key]
        names = {"key": key, "part": job.part, "name": job.name, "round": job.round}
        measurements.append({**names, **actual})
        for key in ("device", "python", "versions"):
            if key in actual:
                result[key] = actual[key]
        result["summary"] = summary(measurements)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        rate = actual.get("seconds_a_step", actual.get("error") or "")
        print(
            f"{job.part} {job.name}: {actual['status']} {rate} ({actual['wall_seconds']:.0f} s)",
            flush=True,
        )
    print(json.dumps(result.get("summary", {}), indent=1))
    if unfinished:
        print(f"{unfinished} measurements did not fit the budget; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
