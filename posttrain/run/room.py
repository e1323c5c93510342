"""Room on the disk and in memory for an export, before anything is written."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from posttrain.base.errors import ConfigError
from posttrain.base.files import tensor_shapes

MERGED = "merged_16bit"
# Bytes a weight takes: blocks of 32 weights in 8 bits with a 16-bit scale; about 5 bits a weight.
BYTES = {"merged_16bit": 2.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_k_m": 0.7}
SPARE = 200e6
"""Bytes of disk for tokenizers and records."""
LIBRARIES = 1e9
"""Bytes of memory for Python, its libraries and the logits that are compared."""


def in_order(to: Sequence[str]) -> list[str]:
    """Targets with what they are made from: merged weights first, then GGUF, then Ollama, which
    takes the first GGUF requested, or q8_0."""
    gguf = [target for target in dict.fromkeys(to) if target.startswith("gguf:")]
    if "ollama" in to and not gguf:
        gguf = ["gguf:q8_0"]
    return [MERGED, *gguf, *(["ollama"] if "ollama" in to else [])] if to else []


def merged_dtype(requested: str, to: Sequence[str]) -> str:
    """The type of the merged weights, from `export.dtype`; ConfigError if a GGUF of another 16-bit
    type would round them a second time."""
    if requested == "float16" and "gguf:bf16" in to:
        raise ConfigError(
            "gguf:bf16 would round float16 weights a second time: use gguf:f16, or --dtype bfloat16"
        )
    if requested == "auto":
        return "bfloat16" if "gguf:bf16" in to else "float16"
    return requested


def disk_bytes(weights: int, targets: Sequence[str]) -> float:
    """Bytes of disk that the targets of a model of so many weights take while they are made."""
    kinds = [target.removeprefix("gguf:") for target in targets if target != "ollama"]
    if not kinds:
        return 0.0
    # q4_k_m is quantised from a file of 16 bits.
    return weights * sum(BYTES[k] for k in (*kinds, *["f16"] * ("q4_k_m" in kinds))) + SPARE


def check_room(base: Path, output: Path, targets: list[str]) -> None:
    """Raise ConfigError if disk or memory are not enough for the targets, with the figures."""
    shards = [tensor_shapes(path) for path in base.glob("model*.safetensors")]
    weights = sum(math.prod(shape) for shard in shards for shape in shard.values())
    if not weights:
        raise ConfigError(f"{base} holds no model*.safetensors")
    disk = disk_bytes(weights, targets)
    if not disk:
        return
    # The base in float32 with its adapter; merged weights and GGUF files are loaded after it.
    import psutil

    memory = weights * 1.25 * 4 + LIBRARIES
    for free, needed, where in (
        (shutil.disk_usage(output).free, disk, f"free on the disk of {output}"),
        (psutil.virtual_memory().available, memory, "of free memory"),
    ):
        if free < needed:
            raise ConfigError(
                f"not enough room: {free / 1e9:.1f} GB {where}, and this export needs "
                f"{needed / 1e9:.1f} GB"
            )
