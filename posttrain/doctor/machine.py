"""The GPU and its driver as nvidia-smi tells them, processor and memory. No torch: it is slow."""

import csv
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from posttrain.doctor.finding import Finding, Status

FIELDS = ("index", "uuid", "name", "driver_version", "memory.total", "memory.used", "compute_cap")
# CUDA 12.x runs on this driver and later, a given 12.y with all features on its own; Linux.
# Tables 2 and 3 of https://docs.nvidia.com/cuda/cuda-toolkit-release-notes
DRIVER_OF_MAJOR = {"12": (525, 60, 13), "13": (580, 65, 6)}
DRIVER_OF = {"12.4": (550, 54, 14), "12.6": (560, 28, 3), "12.8": (570, 26), "12.9": (575, 51, 3)}
VLLM_CUDA = "13"  # of torch in requirements-vllm.lock
OLDEST_CAPABILITY = (7, 0)  # what Unsloth supports, and torch's builds for CUDA 12.8 hold code for
BF16_CAPABILITY = (8, 0)  # also where flash attention starts
SECONDS = 15.0  # without persistence mode the first call starts the driver, card by card
RAM_GB = 6


@dataclass(frozen=True)
class GPU:
    """A GPU as nvidia-smi describes it."""

    name: str
    driver: str
    memory_gb: float
    """Total memory in GB of 2^30; torch sees a few hundred MB less. 0 if it does not say."""
    used_gb: float
    capability: tuple[int, int]
    others: int
    """How many more GPUs there are; a run uses one."""

    @property
    def bf16(self) -> bool:
        """It computes in bfloat16 itself."""
        return self.capability >= BF16_CAPABILITY


def look_for_gpu() -> tuple[GPU | None, list[Finding]]:
    """The GPU that a run would use, and what is to be said about it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, [_no_tool()]
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        said = f"nvidia-smi did not answer within {SECONDS:g} s"
        return None, [Finding("GPU", "fail", said, "restart the machine, or take another")]
    except OSError as error:
        said = f"nvidia-smi cannot be run: {error.strerror}"
        return None, [Finding("GPU", "fail", said, "reinstall the NVIDIA driver")]
    lines = [line for line in csv.reader(answer.stdout.splitlines(), skipinitialspace=True) if line]
    rows = [dict(zip(FIELDS, line, strict=True)) for line in lines if len(line) == len(FIELDS)]
    if answer.returncode or not rows:
        said = " ".join((answer.stdout + answer.stderr).split())[:200] or "it lists no GPU"
        advice = "install a driver that fits this kernel and restart, or take another machine"
        return None, [Finding("GPU", "fail", f"nvidia-smi fails: {said}", advice)]
    row = _visible(rows)
    if row is None:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        said = f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU: training on the CPU"
        return None, [Finding("GPU", "warn", said, "unset CUDA_VISIBLE_DEVICES")]
    gpu = _gpu(row, len(rows) - 1)
    return gpu, [_about(gpu), _memory(gpu), _precision(gpu), _driver(gpu), _driver_for_vllm(gpu)]


def _no_tool() -> Finding:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if any(v.read_text().strip() == "0x10de" for v in vendors if _is_display(v)):
        return Finding("GPU", "fail", "an NVIDIA card, but no driver", "install the NVIDIA driver")
    said = "none found (no nvidia-smi): training on the CPU, which is for the demo configs"
    return Finding("GPU", "warn", said)


def _is_display(vendor: Path) -> bool:
    return vendor.with_name("class").read_text().startswith("0x03")


def _visible(rows: list[dict[str, str]]) -> dict[str, str] | None:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves, which is the one a run takes."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return rows[0]
    first = wanted.split(",")[0].strip()
    for row in rows:
        if first and (row["index"] == first or row["uuid"].startswith(first)):
            return row
    # A slice of a GPU (MIG-...) is not in this list; its whole GPU stands for it.
    return rows[0] if first.startswith("MIG-") else None


def _gpu(row: dict[str, str], others: int) -> GPU:
    major, _, minor = row["compute_cap"].partition(".")
    known = major.isdigit() and minor.isdigit()
    return GPU(
        name=row["name"],
        driver=row["driver_version"],
        memory_gb=_number(row["memory.total"]) / 1024,
        used_gb=_number(row["memory.used"]) / 1024,
        capability=(int(major), int(minor)) if known else (0, 0),
        others=others,
    )


def _number(text: str) -> float:
    """A number of nvidia-smi, which says [N/A] where it has none."""
    return float(text) if re.fullmatch(r"[0-9.]+", text) else 0.0


def _about(gpu: GPU) -> Finding:
    more = f"; {gpu.others} more here, a run uses one" if gpu.others else ""
    if gpu.capability == (0, 0):
        return Finding("GPU", "warn", f"{gpu.name}, compute capability unknown{more}")
    capability = ".".join(map(str, gpu.capability))
    said = f"{gpu.name}, compute capability {capability}{more}"
    if gpu.capability < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        advice = f"{oldest} is the oldest that works; take another card, or CUDA_VISIBLE_DEVICES= "
        return Finding("GPU", "fail", said, advice + "for the CPU")
    return Finding("GPU", "ok", said)


def _memory(gpu: GPU) -> Finding:
    if not gpu.memory_gb:
        return Finding("GPU memory", "warn", "nvidia-smi does not tell (a slice of a GPU?)")
    said = f"{gpu.memory_gb:.1f} GB, {gpu.used_gb:.1f} GB in use"
    if gpu.used_gb > 1:
        advice = "end what uses it (nvidia-smi lists it), or the figures below do not hold"
        return Finding("GPU memory", "warn", said, advice)
    return Finding("GPU memory", "ok", said)


def _precision(gpu: GPU) -> Finding:
    if gpu.capability == (0, 0):
        return Finding("precision", "warn", "unknown")
    if gpu.bf16:
        return Finding("precision", "ok", "bfloat16 yes, float16 yes, flash attention yes")
    said = "bfloat16 no, float16 yes, flash attention no (memory-efficient attention instead)"
    return Finding("precision", "ok", said, "the _t4 configs are for this card")


def _driver(gpu: GPU) -> Finding:
    """Whether the driver runs the CUDA that the installed torch was built for."""
    cuda = cuda_of_torch()
    if cuda is None:
        said = f"{gpu.driver}, but the installed torch has no CUDA: it would train on the CPU"
        return Finding("driver", "fail", said, "delete .venv and let ./run install it again")
    found = _numbers(gpu.driver)
    oldest = DRIVER_OF_MAJOR.get(cuda.partition(".")[0], (0,))
    own = DRIVER_OF.get(cuda, oldest)
    said = f"{gpu.driver}, for torch with CUDA {cuda}"
    if found < oldest:
        needs = ".".join(map(str, oldest))
        return Finding("driver", "fail", said, f"install driver {needs} or later")
    if found < own:
        needs = ".".join(map(str, own))
        note = f"works within CUDA {cuda.partition('.')[0]}; {needs} is what CUDA {cuda} came with"
        return Finding("driver", "warn", said, note)
    return Finding("driver", "ok", said)


def _driver_for_vllm(gpu: GPU) -> Finding:
    """Whether it runs the environment of ./run --vllm, before that is installed."""
    needs = DRIVER_OF_MAJOR[VLLM_CUDA]
    if _numbers(gpu.driver) >= needs:
        return Finding("vLLM", "ok", f"the driver runs ./run --vllm (CUDA {VLLM_CUDA})")
    oldest = ".".join(map(str, needs))
    said = f"./run --vllm needs driver {oldest} or later (CUDA {VLLM_CUDA}); all else works without"
    return Finding("vLLM", "ok", said)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, read from its source; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def look_at_processor() -> list[Finding]:
    """Processor cores and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    status: Status = "ok" if free >= RAM_GB else "warn"
    advice = "" if status == "ok" else f"the 0.5B model wants about {RAM_GB} GB free to load"
    return [
        Finding("processor", "ok", f"{cores} cores, {platform.machine()}"),
        Finding("memory", status, f"{total:.1f} GB, {free:.1f} GB free", advice),
    ]
