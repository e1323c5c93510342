"""Room on the disk and in memory for an export, before anything is written."""

import math
import shutil
from pathlib import Path

from scripts.common.errors import ConfigError

# Bytes a weight takes: blocks of 32 weights in 8 bits with a 16-bit scale; about 5 bits a weight.
BYTES = {"merged_16bit": 2.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_k_m": 0.7}
SPARE = 200e6
"""Bytes of disk for tokenizers and records."""
LIBRARIES = 1e9
"""Bytes of memory for Python, its libraries and the logits that are compared."""


def check_room(base: Path, output: Path, targets: list[str]) -> None:
    """Compare what the targets need with what is free.

    Raises:
        ConfigError: not enough disk or memory, with the figures.
    """
    from safetensors import safe_open

    weights = 0
    for shard in base.glob("model*.safetensors"):
        with safe_open(shard, "pt") as file:
            names = list(file.keys())
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    if not weights:
        raise ConfigError(f"{base} holds no model*.safetensors")
    kinds = [target.removeprefix("gguf:") for target in targets if target != "ollama"]
    if not kinds:
        return
    disk = weights * sum(BYTES[kind] for kind in kinds) + SPARE
    if "q4_k_m" in kinds:
        disk += weights * BYTES["f16"]  # it is quantised from a file of 16 bits
    _compare(shutil.disk_usage(output).free, disk, f"free on the disk of {output}")
    # The gate holds a model in float32 and a GGUF file at once; a merge takes less.
    import psutil

    memory = weights * (1.25 * 4 + 2) + LIBRARIES
    _compare(psutil.virtual_memory().available, memory, "of free memory")


def _compare(free: float, needed: float, where: str) -> None:
    if free < needed:
        raise ConfigError(
            f"not enough room: {free / 1e9:.1f} GB {where}, and this export needs "
            f"{needed / 1e9:.1f} GB"
        )
