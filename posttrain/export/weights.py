"""Check the weights of an exported file against base and adapter, without peft or llama.cpp.

Distributions do not reveal a missing layer that training has changed little. Weights do, however
small the change is. A GGUF file is read back with the names and the layout of transformers.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.base.files import read_object
from posttrain.export.proof import at_most
from posttrain.run.results import Check
from posttrain.settings.adapters import WEIGHTS, read_adapter

MOST_ROW_ERROR = 0.75
"""For quantised types, the largest root mean square error of a row, in steps. Rounding costs 0.3,
and 0.5 in a row of a few blocks; an error over one step means another weight."""
HALF_A_STEP = 0.6
"""For 16-bit types, the largest error of any weight: rounding to the nearest value moves a weight
by at most half a step. The rest allows for another order of float32 sums."""
MOST_LOST = 0.25
"""Share of the change made by training that may be lost."""
LEVELS = {"q8_0": 127, "q4_k_m": 15}
"""Steps from 0 to the largest weight of a block, and from the smallest to the largest."""
BLOCK = 32  # weights in a row that are quantised together
NUMBERS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta"),
)
"""Numbers in a model's config that it computes with."""
LORA_TENSOR = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
Tensors = Iterator[tuple[str, Any]]


def check_weights(base: Path, adapter: Path, file: Path, kind: str, dtype: str) -> list[Check]:
    """Compare the weights of a file with W + scale B A, in float32.

    - `weight_error`: the largest error of a weight, in steps of the type; in a quantised type, the
      root mean square of a row of a matrix. Infinite if a tensor is missing or unexpected, or one
      of NUMBERS differs in a GGUF file's header.
    - `learning_lost`: the share of the change from W that is lost: 0 if none, 1 if the file holds
      W, or if the change was added twice. It is the error's projection on the change, which
      rounding, being the same in all directions, hardly moves.

    Args:
        file: The folder of merged weights, or a GGUF file.
        kind: merged_16bit, f16, bf16, q8_0 or q4_k_m.
        dtype: The type that the weights were merged to.
    """
    import torch
    from safetensors.torch import load_file

    config = read_adapter(adapter)
    lora = {
        LORA_TENSOR.sub(r".\1", name).removeprefix("base_model.model."): tensor.float()
        for name, tensor in load_file(adapter / WEIGHTS).items()
    }
    before = _files(base)
    tied = read_object(base / "config.json").get("tie_word_embeddings")
    if tied:
        before.pop("lm_head.weight", None)  # a copy that is not read
    errors, lost, change, seen = [0.0], 0.0, 0.0, set()
    tensors: Tensors = ((name, made.get_tensor(name)) for name, made in _files(file).items())
    for name, actual in tensors if file.is_dir() else _from_gguf(file, base):
        if name == "lm_head.weight" and tied:
            continue
        seen.add(name)
        if name not in before:
            continue
        weight = before[name].get_tensor(name).float()
        expected = _expected(name.removesuffix(".weight"), weight, lora, config)
        error = actual.float() - expected
        errors.append(_error(error, expected, kind, dtype))
        if expected is not weight:
            expected -= weight
            lost -= float((error * expected).sum(dtype=error.dtype))
            change += float(expected.square_().sum())
    worst = float(torch.tensor(errors).max())  # max() of Python could lose a NaN
    if seen != set(before):
        worst = math.inf
    return [
        at_most("weight_error", worst, MOST_ROW_ERROR if kind in LEVELS else HALF_A_STEP),
        at_most("learning_lost", abs(lost / change) if change else 0.0, MOST_LOST),
    ]


def _error(error: Any, expected: Any, kind: str, dtype: str) -> float:
    """The largest error of a tensor in rounding steps, as `check_weights` defines them."""
    import torch

    peak = float(expected.abs().max())
    if kind not in LEVELS or expected.dim() < 2 or expected.shape[-1] % BLOCK:
        # Weights near zero are compared with a thousandth of the largest, or with the type's
        # smallest normal number.
        floor = max(peak / 1000, torch.finfo(torch.float16).tiny)
        relative = error.abs() / expected.abs().clamp_(min=floor)
        return float(relative.max() / torch.finfo(getattr(torch, dtype)).eps)
    blocks = expected.unflatten(-1, (-1, BLOCK))
    high, low = blocks.amax(-1).clamp_(min=0), blocks.amin(-1).clamp_(max=0)
    span = torch.maximum(high, -low) if kind == "q8_0" else high - low
    step = (span / LEVELS[kind]).square_().mean(-1).sqrt_().clamp_(min=peak * 1e-4)
    rows = error.square().mean(-1).sqrt_()
    return float((rows / step).max())


def _files(folder: Path) -> dict[str, Any]:
    """The open file that holds each tensor of a model folder."""
    from safetensors import safe_open

    files: list[Any] = [safe_open(path, "pt") for path in sorted(folder.glob("model*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _from_gguf(path: Path, base: Path) -> Tensors:
    """The tensors of a GGUF file, dequantised, with the names and layout of transformers, after
    the names of those NUMBERS in its header that are not the base's."""
    import torch
    from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    numbers = {**config.to_dict(), **(config.to_dict().get("rope_parameters") or {})}
    for entry, name in GGUF_CONFIG_MAPPING.get(architecture, {}).items():
        field, expected = reader.fields.get(f"{architecture}.{entry}"), numbers.get(name)
        if name not in NUMBERS or field is None or expected is None:
            continue
        stored = field.contents()
        if isinstance(stored, int | float) and not math.isclose(stored, expected, rel_tol=1e-6):
            yield name, None  # as an unexpected tensor
    layout = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(kind, config.num_hidden_layers)
    known = {table.get_name(name, (".weight", ".bias")): name for name in skeleton.state_dict()}
    for tensor in reader.tensors:
        read = layout.process(
            dequantize(tensor.data, tensor.tensor_type),
            tensor.name,
            tensor_key_mapping=known,
            parsed_parameters={"tensors": {}},
        )
        if read.name in known:
            yield known[read.name], torch.from_numpy(read.weights.copy())


def _expected(module: str, weight: Any, lora: dict[str, Any], config: dict[str, Any]) -> Any:
    """W + scale B A in float32; DoRA (arXiv 2402.09353) scales its rows to their magnitude."""
    from peft.utils.other import get_pattern_key

    if f"{module}.lora_A" not in lora:
        return weight
    down, up = lora[f"{module}.lora_A"], lora[f"{module}.lora_B"]
    rank = down.shape[0]
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"]))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    merged = weight + scale * (up @ down)
    magnitude = lora.get(f"{module}.lora_magnitude_vector")
    if magnitude is not None:
        merged *= (magnitude.flatten() / merged.norm(dim=1))[:, None]
    return merged
