"""Are the merged weights the sum that they should be? Computed anew, without peft, from the files.

Comparing what models answer cannot see a layer that was left out where training changed it little;
comparing weights can, at any size of the change.
"""

import json
import math
from pathlib import Path
from typing import Any

from posttrain.export.merge import LORA_TENSOR
from posttrain.export.proof import Check, at_most

HALF_A_UNIT = 0.6
"""Rounding to the nearest moves a weight by at most half of its type's relative precision; the rest
is for the order of a float32 sum."""


def check_weights(base: Path, adapter: Path, merged: Path) -> Check:
    """Largest distance of a merged weight from W + scale B A, relative to the weight, in units of
    its type's precision. Weights near zero are measured against a thousandth of the largest,
    or the type's smallest normal number."""
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
                found = after.get_tensor(name)
                floor = max(float(expected.abs().max()) / 1000, torch.finfo(found.dtype).tiny)
                error = (found.float() - expected).abs_() / expected.abs().clamp_(min=floor)
                worst = max(worst, float(error.max()) / torch.finfo(found.dtype).eps)
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
