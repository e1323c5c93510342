"""The device that the policy will run on, and whether it can run a config."""

import gc
from dataclasses import dataclass
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.settings import Model, Training

ROWS_AT_ONCE = 8  # scored by their log-probabilities, where evaluation.batch_size is null


@dataclass(frozen=True)
class Device:
    name: str
    memory_gb: float  # of the GPU, in units of 2^30 bytes; 0 without a GPU
    bf16: bool  # the hardware computes in bfloat16, without emulation
    threads: int = 1  # what torch computes with on the CPU


def check_device(device: Device, model: Model, training: Training) -> str:
    """A line that names the device; raises ConfigError if it cannot run this config."""
    if device.memory_gb == 0:
        threads = f"{device.threads} thread{'s' if device.threads > 1 else ''}"
        best = "bfloat16" if device.bf16 else "float32"
        dtype = best if model.dtype == "auto" else model.dtype
        line = f"No GPU here: training on the CPU, {threads}, in {dtype}."
        if dtype == "bfloat16" and not device.bf16:
            line += (
                "\nnote: this processor has no bfloat16 instructions and emulates them, several "
                "times as slowly as float32; model.dtype=auto chooses what it is fast at"
            )
        return line
    if device.memory_gb < model.min_gpu_memory_gb:
        raise ConfigError(
            f"{device.name} has {device.memory_gb:.1f} GB of memory and this config needs "
            f"{model.min_gpu_memory_gb:g} GB; lower training.per_device_train_batch_size and, "
            "once it fits, model.min_gpu_memory_gb"
        )
    for setting, value in (("training.bf16", training.bf16), ("model.dtype", model.dtype)):
        if value in (True, "bfloat16") and not device.bf16:
            other = model.config_without_bf16
            instead = f"; use {other} instead" if other else ""
            raise ConfigError(f"{device.name} has no bfloat16, which {setting} needs{instead}")
    return f"Training on {device.name} ({device.memory_gb:.0f} GB)."


def free_bytes(device: Any) -> int:
    """Bytes that are free on a torch device: the GPU's, or the machine's."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def free_memory() -> None:
    """Free the memory that a failed attempt held. Call it once its error is out of scope."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
