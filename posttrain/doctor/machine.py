"""GPU and driver by nvidia-smi, processor and memory. Without torch, which is slow to import."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from posttrain.doctor import Finding

FIELDS = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "compute_cap")
# CUDA 12.x runs on this driver and later, on Linux.
# Table 2 of https://docs.nvidia.com/cuda/cuda-toolkit-release-notes
DRIVER_OF_MAJOR = {"12": "525.60.13", "13": "580.65.6"}
OLDEST_CAPABILITY = 7.0  # what Unsloth supports, and torch's builds for CUDA 12.8 hold code for
BF16_CAPABILITY = 8.0  # also where flash attention starts
SECONDS = 15.0  # without persistence mode the first call starts the driver, card by card
RAM_GB = 6


@dataclass(frozen=True)
class GPU:
    """A GPU as nvidia-smi describes it."""

    name: str
    driver: str
    memory_gb: float
    """Total memory in GB of 2^30; torch sees a few hundred MB less. 0 if unknown."""
    used_gb: float
    capability: float
    """0 if unknown."""

    @property
    def bf16(self) -> bool:
        """It computes in bfloat16 itself."""
        return self.capability >= BF16_CAPABILITY


def look_for_gpu() -> tuple[GPU | None, list[Finding]]:
    """The GPU that a run would use, and the findings about it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, [_no_tool()]
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        text = f"nvidia-smi did not answer within {SECONDS:g} s"
        return None, [Finding("GPU", "fail", text, "restart the machine, or take another")]
    except OSError as error:
        text = f"nvidia-smi cannot be run: {error.strerror}"
        return None, [Finding("GPU", "fail", text, "reinstall the NVIDIA driver")]
    lines = [line.split(", ") for line in answer.stdout.splitlines()]
    rows = [dict(zip(FIELDS, line, strict=True)) for line in lines if len(line) == len(FIELDS)]
    if answer.returncode or not rows:
        text = " ".join((answer.stdout + answer.stderr).split())[:200] or "it lists no GPU"
        advice = "install a driver that fits this kernel and restart, or take another machine"
        return None, [Finding("GPU", "fail", f"nvidia-smi fails: {text}", advice)]
    row = _visible(rows)
    if row is None:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        text = f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU: training on the CPU"
        return None, [Finding("GPU", "warn", text, "unset CUDA_VISIBLE_DEVICES")]
    gpu = GPU(
        name=row["name"],
        driver=row["driver_version"],
        memory_gb=_number(row["memory.total"]) / 1024,
        used_gb=_number(row["memory.used"]) / 1024,
        capability=_number(row["compute_cap"]),
    )
    return gpu, [_about(gpu, len(rows) - 1), _memory(gpu), _precision(gpu), _driver(gpu)]


def _no_tool() -> Finding:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if any(vendor.read_text().strip() == "0x10de" for vendor in vendors):
        return Finding("GPU", "fail", "an NVIDIA card, but no driver", "install the NVIDIA driver")
    text = "none (no nvidia-smi): training on the CPU, which is for the demo and _cpu configs"
    return Finding("GPU", "warn", text, "./run doctor --steps estimates the time that they take")


def _visible(rows: list[dict[str, str]]) -> dict[str, str] | None:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves, which is the one a run takes."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return rows[0]
    first = wanted.split(",")[0].strip()
    for row in rows:
        if first and (row["index"] == first or row["uuid"].startswith(first)):
            return row
    # A slice of a GPU (MIG-...) is not in this list; the GPU that it is part of stands for it.
    return rows[0] if first.startswith("MIG-") else None


def _number(text: str) -> float:
    """A number of nvidia-smi, which prints [N/A] where it has none."""
    return float(text) if re.fullmatch(r"[0-9.]+", text) else 0.0


def _about(gpu: GPU, others: int) -> Finding:
    more = f"; {others} more here, a run uses one" if others else ""
    if not gpu.capability:
        return Finding("GPU", "warn", f"{gpu.name}, compute capability unknown{more}")
    text = f"{gpu.name}, compute capability {gpu.capability}{more}"
    if gpu.capability < OLDEST_CAPABILITY:
        oldest = f"{OLDEST_CAPABILITY} is the oldest that works"
        advice = f"{oldest}; take another card, or CUDA_VISIBLE_DEVICES= for the CPU"
        return Finding("GPU", "fail", text, advice)
    return Finding("GPU", "ok", text)


def _memory(gpu: GPU) -> Finding:
    if not gpu.memory_gb:
        return Finding("GPU memory", "warn", "unknown to nvidia-smi (a slice of a GPU?)")
    text = f"{gpu.memory_gb:.1f} GB, {gpu.used_gb:.1f} GB in use"
    if gpu.used_gb > 1:
        advice = "end what uses it (nvidia-smi lists it): the figures below need all of it"
        return Finding("GPU memory", "warn", text, advice)
    return Finding("GPU memory", "ok", text)


def _precision(gpu: GPU) -> Finding:
    if not gpu.capability:
        return Finding("precision", "warn", "unknown")
    if gpu.bf16:
        return Finding("precision", "ok", "bfloat16 yes, float16 yes, flash attention yes")
    text = "bfloat16 no, float16 yes, flash attention no (memory-efficient attention instead)"
    return Finding("precision", "ok", text, "the _t4 configs are for this card")


def _driver(gpu: GPU) -> Finding:
    """Whether the driver runs the CUDA that the installed torch was built for."""
    cuda = cuda_of_torch()
    if cuda is None:
        text = f"{gpu.driver}, but the installed torch has no CUDA: it would train on the CPU"
        return Finding("driver", "fail", text, "delete .venv and let ./run install it again")
    text = f"{gpu.driver}, for torch with CUDA {cuda}"
    oldest = DRIVER_OF_MAJOR.get(cuda.partition(".")[0], "0")
    if _numbers(gpu.driver) < _numbers(oldest):
        return Finding("driver", "fail", text, f"install driver {oldest} or later")
    return Finding("driver", "ok", text)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, read from its source; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def look_at_processor() -> list[Finding]:
    """Processor cores and memory."""
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory()
    free = memory.available / 2**30
    text = f"{memory.total / 2**30:.1f} GB, {free:.1f} GB free"
    advice = f"the 0.5B model wants about {RAM_GB} GB free to load" if free < RAM_GB else ""
    return [
        Finding("processor", "ok", f"{cores} cores, {platform.machine()}"),
        Finding("memory", "warn" if advice else "ok", text, advice),
    ]
