"""Check that merged weights are the right sums, computed from the files without peft.

Comparing the answers of models does not reveal a missing layer that training has changed little.
Comparing weights does, however small the change is.
"""

import json
import math
from pathlib import Path
from typing import Any

from posttrain.export.merge import LORA_TENSOR
from posttrain.export.proof import Check, at_most

HALF_A_UNIT = 0.6
"""Rounding to the nearest value moves a weight by at most half a unit of its type's precision. The
rest allows for another order of float32 sums."""


def check_weights(base: Path, adapter: Path, merged: Path) -> Check:
    """The largest difference between a merged weight and W + scale B A, relative to the weight, in
    units of its type's precision. Weights near zero are compared with a thousandth of the largest
    weight, or with the type's smallest normal number."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    lora = {
        LORA_TENSOR.sub(r".\1", name).removeprefix("base_model.model."): tensor.float()
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    worst = 0.0
    for path in sorted(base.glob("model*.safetensors")):
        with safe_open(path, "pt") as before, safe_open(merged / path.name, "pt") as after:
            if set(before.keys()) != set(after.keys()):
                return at_most("weight_error", math.inf, HALF_A_UNIT)
            for name in before.keys():  # noqa: SIM118  # not a mapping
                expected = _expected(
                    name.removesuffix(".weight"), before.get_tensor(name), lora, config
                )
                actual = after.get_tensor(name)
                floor = max(float(expected.abs().max()) / 1000, torch.finfo(actual.dtype).tiny)
                error = (actual.float() - expected).abs_() / expected.abs().clamp_(min=floor)
                worst = max(worst, float(error.max()) / torch.finfo(actual.dtype).eps)
    return at_most("weight_error", worst, HALF_A_UNIT)


def _expected(module: str, weight: Any, lora: dict[str, Any], config: dict[str, Any]) -> Any:
    """W + scale B A in float32; DoRA (arXiv 2402.09353) scales its rows to their magnitude."""
    weight = weight.float()
    if f"{module}.lora_A" not in lora:
        return weight
    down, up = lora[f"{module}.lora_A"], lora[f"{module}.lora_B"]
    rank = down.shape[0]
    scale = _alpha(module, config) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    weight = weight + scale * (up @ down)
    magnitude = lora.get(f"{module}.lora_magnitude_vector")
    if magnitude is not None:
        weight *= (magnitude.flatten() / weight.norm(dim=1))[:, None]
    return weight


def _alpha(module: str, config: dict[str, Any]) -> float:
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    return float(patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"]))
