"""Peak memory of each script on the CPU, beside what the doctor estimates for it.

    python bench/memory.py                       # writes results/memory_cpu.json
    python bench/memory.py --only dpo_256_1      # one point; other rows stay as they are

A point is a process of its own that does what the script does: loads the policy (4-bit, random
weights at the exact shape of Qwen2.5-0.5B), generates (GRPO) or scores the reference (DPO), takes
an optimizer step and scores held-out pairs (DPO), all with rows as long as model.max_seq_length.
The kernel keeps the peak of its resident memory (VmHWM in /proc/PID/status), which is set back
between phases, so that each sum of estimate.py is held against its own phase. Linux only.

Values are float32: a CPU without bfloat16 in hardware emulates it, and Unsloth then trains without
autocast, so that peft copies every LoRA layer's input to float32, which no GPU does. AdamW's
moments are made before the one step that is taken, so that it holds what every later one does.

What Python, the libraries, the tokenizer and the data hold before the model is loaded is measured
in the same process and taken off: the rest is what the tensors need. Two settings of the C library
keep freed tensors out of the count, which it would otherwise hoard: MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ (mallopt(3)). Loading is reported and not estimated: its peak is mostly pages
of the checkpoint's file, which the kernel may drop.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.command import parser
from bench.gpu import data_overrides
from bench.sides import load_rows
from posttrain.model.estimate import CPU, GB, estimate, phases
from posttrain.model.shape import shape_of
from posttrain.settings.command import SETTINGS, load_settings
from tests.helpers import SHARED, make_qwen

RESULT = Path(__file__).parent / "results" / "memory_cpu.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo")
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
PHASES = ("reference", "step", "generation", "scoring")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "WANDB_MODE": "disabled",
    # From this size on a tensor has a mapping of its own, which is given back when it is freed.
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}
GROUP = 4
PROMPT = 160  # tokens left for a GRPO prompt; the longest questions that fit are taken


@dataclass(frozen=True)
class Point:
    """Which script, and how large."""

    task: str
    length: int
    """model.max_seq_length."""
    batch: int
    """training.per_device_train_batch_size."""

    @property
    def name(self) -> str:
        return f"{self.task}_{self.length}_{self.batch}"

    @property
    def config(self) -> str:
        name = {"dpo": "dpo_french_16gb", "grpo": "grpo_gsm8k_16gb"}[self.task]
        return f"configs/{name}.yaml"

    @property
    def overrides(self) -> list[str]:
        """What differs from the config, apart from where the model and the data are."""
        common = [
            f"model.max_seq_length={self.length}",
            "model.dtype=float32",
            "training.bf16=false",
            f"training.per_device_train_batch_size={self.batch}",
            "training.gradient_accumulation_steps=1",
            "training.max_steps=1",
            "training.save_steps=1000",
        ]
        if self.task == "dpo":
            return [*common, "evaluation={limit: 1, batch_size: 1, replies: 0, also: []}"]
        return [
            *common,
            f"training.num_generations={GROUP}",
            f"training.max_completion_length={self.length - PROMPT}",
            f"evaluation={{batch_size: {self.batch}, max_new_tokens: {self.length - PROMPT}}}",
        ]


POINTS = [
    *(Point("dpo", length, batch) for length in (256, 384) for batch in (1, 3)),
    *(Point("grpo", length, batch) for length in (192, 256) for batch in (4, 8)),
]


class Peak:
    """The peak resident memory of this process in bytes, by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}

    def end(self, phase: str) -> None:
        """Note the peak since the last call under this name, and start anew."""
        self.phases[phase] = max(self.phases.get(phase, 0), _status("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")


def without_a_model() -> int:
    """Resident bytes, once what the data's reading left behind is given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def moments_first() -> Any:
    """A callback that makes AdamW's moments before the first step, as they are from then on."""
    import torch
    from transformers import TrainerCallback

    class MomentsFirst(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.grad = torch.zeros_like(weight)
            optimizer.step()
            optimizer.zero_grad()

    return MomentsFirst()


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(point: Point, model_folder: Path, run_folder: Path) -> dict[str, Any]:
    """What the script does, phase by phase, in this process."""
    from bench.lengths import force_lengths
    from posttrain.model import policy, pretrained, runtime
    from posttrain.run import folder as tracking
    from posttrain.scoring import pairs as scoring
    from posttrain.train.stop import StopRequest
    from posttrain.train.watch import Watch
    from scripts import dpo, grpo

    peak = Peak()
    overrides = [*data_overrides(point.task, "gpu", SHARED, model_folder), *point.overrides]
    settings = load_settings(SETTINGS[point.task], ROOT / point.config, overrides)
    runtime.start(False, None)
    import trl  # noqa: F401  # so that the trainers' modules too are there before the model is

    tokenizer = pretrained.load_tokenizer(settings.model)
    rows = load_rows(point.task, settings, tokenizer, longest=True)
    overhead = without_a_model()
    peak.end("before")
    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, False)
    run = tracking.RunFolder(run_folder)
    run.open(fresh=True)
    peak.end("load")
    if point.task == "dpo":
        trainer, _ = dpo.build_trainer(model, tokenizer, rows[: point.batch], settings, run)
        peak.end("reference")
    else:
        functions = grpo.load_rewards(settings, rows[0])
        trainer, _ = grpo.build_trainer(model, tokenizer, rows, settings, functions, run)
        ends = [trainer.processing_class.eos_token_id, *trainer.eos_token_ids]
        never = settings.training.max_completion_length + 1
        force_lengths(repeat(never), list(dict.fromkeys(ends)))
        Watch(trainer, settings, run, StopRequest(None))  # with it rollouts are those of a run
        note_generation(trainer, peak)
    trainer.add_callback(moments_first())
    trainer.train()
    peak.end("step")
    if point.task == "dpo":
        scoring.pair_scorer(model, tokenizer, rows[: settings.evaluation.limit], settings)()
        peak.end("scoring")
    return {"overhead": overhead, "phases": peak.phases}


def note_generation(trainer: Any, peak: Peak) -> None:
    """Give generation a phase of its own."""
    generate = trainer._generate_single_turn

    def generating(*arguments: Any, **named: Any) -> Any:
        peak.end("step")
        try:
            return generate(*arguments, **named)
        finally:
            peak.end("generation")

    trainer._generate_single_turn = generating


def estimated(point: Point) -> dict[str, float]:
    """GB by phase without the overhead, as the doctor's sum has them for a CPU."""
    settings = load_settings(SETTINGS[point.task], ROOT / point.config, point.overrides)
    shape = shape_of(QWEN)
    assert shape is not None
    terms = estimate(settings, shape, CPU)
    always = terms["weights"] + terms["adapter"] + terms["merged"]
    return {name: always + size for name, size in phases(terms).items() if size}


def run_point(point: Point, model: Path, work: Path) -> dict[str, Any]:
    """Measure in a process of its own; a row of the result, sizes in GB of 2^30 bytes."""
    result = work / f"{point.name}.json"
    with tempfile.TemporaryDirectory(dir=work) as folder:
        process = subprocess.run(
            [sys.executable, __file__, "--measure", point.name, model, result],
            env={**os.environ, **ENVIRONMENT, "POSTTRAIN_CACHE": folder, "BENCH_RUN": folder},
            capture_output=True,
            text=True,
        )
    if process.returncode:
        raise SystemExit(f"{point.name} failed:\n{process.stdout}{process.stderr}")
    actual = json.loads(result.read_text(encoding="utf-8"))
    overhead, resident = actual["overhead"], actual["phases"]
    sizes = {name: round((peak - overhead) / GB, 3) for name, peak in resident.items()}
    return {
        "name": point.name,
        "script": point.task,
        "max_seq_length": point.length,
        "per_device_train_batch_size": point.batch,
        "overhead_gb": round(overhead / GB, 3),
        "load_gb": sizes["load"],
        "measured_gb": {name: sizes[name] for name in PHASES if name in sizes},
        "estimated_gb": {name: round(size, 3) for name, size in estimated(point).items()},
    }


def main() -> int:
    command = parser(__doc__)
    command.set_defaults(output=RESULT)
    command.add_argument("--only", nargs="*", choices=[p.name for p in POINTS], default=[])
    command.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    requested = command.parse_args()
    if requested.measure:
        name, model, result = requested.measure
        (point,) = (point for point in POINTS if point.name == name)
        actual = measure(point, Path(model), Path(os.environ["BENCH_RUN"]) / "run")
        Path(result).write_text(json.dumps(actual), encoding="utf-8")
        return 0
    rows = {}
    if requested.output.exists():
        rows = {r["name"]: r for r in json.loads(requested.output.read_text("utf-8"))["points"]}
    with tempfile.TemporaryDirectory() as folder:
        model = make_qwen(Path(folder) / "model", SHARED / "qwen2.5-tokenizer")
        for point in [p for p in POINTS if not requested.only or p.name in requested.only]:
            rows[point.name] = row = run_point(point, model, Path(folder))
            print(point.name, "measured", row["measured_gb"], "estimated", row["estimated_gb"])
            write(requested.output, [rows[p.name] for p in POINTS if p.name in rows])
    return 0


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows, with what they were measured on and with."""
    result = {
        "unit": "GB of 2^30 bytes, above overhead_gb but for itself",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in PACKAGES},
        "points": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
