"""Which files of configs/ this machine can run, why not, and seconds a step of those for a CPU."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.base.processor import free_cores
from posttrain.doctor import Finding
from posttrain.doctor.installation import VLLM
from posttrain.doctor.machine import GPU
from posttrain.model.device import ROWS_AT_ONCE, Device, check_device
from posttrain.model.estimate import GPU as GPU_SUM
from posttrain.model.estimate import estimate, phases, this_cpu
from posttrain.model.recipe import learning_rate_note, recipe
from posttrain.model.shape import Shape, shape_of
from posttrain.settings import DPOSettings, GRPOSettings, RolloutModel, TrainingSettings
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.settings.strict_yaml import read_yaml

# What to do where the phase that needs most does not fit.
SMALLER = {
    "step": "lower training.per_device_train_batch_size and raise gradient_accumulation_steps",
    "generation": "lower training.steps_per_generation or evaluation.batch_size",
    "scoring": f"lower evaluation.batch_size, which is {ROWS_AT_ONCE} where it is null",
}
TOKENS = 200
"""Of a prompt of GSM8K with a worked example, and of one side of a French pair, about."""
MANY = 256
"""Vectors of a product where there are many."""
DTYPES = ("float32", "bfloat16")
SECONDS = 0.5
"""How long each kind of product is repeated."""
OVERHEAD = 1.5
"""A step's time over that of its products, for attention, norms, LoRA and sampling: 1.3 (DPO) and
1.6 (GRPO) on Qwen2.5-Coder-0.5B (bench/results/real_cpu.json)."""


def look_at_configs(gpu: GPU | None) -> tuple[list[Finding], list[dict[str, Any]]]:
    """A finding for each config, and the same in figures for --json."""
    looked = [_look_at(path, gpu) for path in sorted((ROOT / "configs").glob("*.yaml"))]
    facts = [{"config": f.subject, "fits": f.status == "ok", **values} for f, values in looked]
    return [finding for finding, _ in looked], facts


def _look_at(path: Path, gpu: GPU | None) -> tuple[Finding, dict[str, Any]]:
    name = str(path.relative_to(ROOT))
    try:
        method = read_yaml(path).get("method")
        if method not in SETTINGS:
            raise ConfigError(f"method should be {' or '.join(SETTINGS)}, got {method!r}")
        settings: Any = load_settings(SETTINGS[method], path)
    except ConfigError as error:
        return Finding(name, "fail", "cannot be read", str(error)), {"why": str(error)}
    shape = shape_of(settings.model.name)
    terms = None if shape is None else estimate(settings, shape, GPU_SUM if gpu else this_cpu())
    sizes = recipe(settings)
    figures = {**asdict(sizes), "tokens_a_step": sizes.tokens_a_step}
    why = _why_not(settings, gpu, terms)
    values = {"estimated_gb": terms, "recipe": figures, "why": why}
    note = learning_rate_note(settings, shape) or ""
    if why is not None:
        return Finding(name, "warn", why, note), values
    steps = f"{sizes.duration()} steps" if sizes.steps is not None else sizes.duration()
    detail = f"{steps}; a step is {sizes.step()}, at most {sizes.tokens_a_step:,} tokens"
    peak = f", about {terms['peak']:.1f} GB at its peak (estimated)" if terms else ""
    return Finding(name, "ok", f"fits{peak}", note, (detail,)), values


def _why_not(
    settings: TrainingSettings, gpu: GPU | None, terms: dict[str, float] | None
) -> str | None:
    """Why a run would be refused or would not fit; None if it fits."""
    model = settings.model
    if isinstance(model, RolloutModel) and model.fast_inference == "always" and not VLLM:
        return "samples with vLLM: for ./run --vllm"
    if gpu is None and model.min_gpu_memory_gb:
        return "needs a GPU"
    if gpu is None:
        memory = psutil.virtual_memory().total / 2**30
        short = terms is not None and terms["peak"] > memory
        return f"may not fit: the estimate is over the {memory:.1f} GB of memory" if short else None
    device = Device(gpu.name, gpu.memory_gb or float("inf"), gpu.bf16)
    try:
        check_device(device, model, settings.training)
    except ConfigError as error:
        return str(error)
    if terms and gpu.memory_gb and terms["peak"] > gpu.memory_gb:
        sizes = phases(terms)
        largest = max(sizes, key=sizes.__getitem__)
        over = f"may not fit: the estimate is over the card's {gpu.memory_gb:.1f} GB"
        return f"{over}; {SMALLER[largest]}"
    return None


def look_at_steps() -> list[Finding]:
    """About how long a step of each config for a CPU takes here; loads torch."""
    import torch

    torch.set_num_threads(free_cores())
    findings = []
    for path in sorted((ROOT / "configs").glob("*_cpu.yaml")):
        method = str(read_yaml(path).get("method"))
        settings: Any = load_settings(SETTINGS.get(method, GRPOSettings), path)  # which says why
        if shape := shape_of(settings.model.name):
            seconds, steps = seconds_a_step(settings, shape), settings.training.max_steps
            text = f"about {seconds:.0f} s a step, {steps} steps in {seconds * steps / 3600:.1f} h"
            findings.append(Finding(str(path.relative_to(ROOT)), "ok", text))
    return findings


def seconds_a_step(settings: TrainingSettings, shape: Shape) -> float:
    """Seconds of an optimizer step with the number type that is faster here.

    A step is its matrix products: each weight with each token in the forward pass and again for the
    gradient of its input (the output layer's with each scored token, three times), and each weight
    with all rows of a decoding step, as if no completion ended before its limit.
    """
    training = settings.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    head, read, steps = shape.vocab * shape.hidden, 0, 0
    if isinstance(settings, GRPOSettings):
        steps = settings.training.max_completion_length
        read = rows // settings.training.num_generations * TOKENS
        prompts = read * training.gradient_accumulation_steps  # once in each micro-batch
        trained, scored = prompts + rows * steps, rows * steps
    else:
        trained = scored = rows * TOKENS * (2 if isinstance(settings, DPOSettings) else 1)
    a_token = min(product_seconds(shape, MANY, dtype) for dtype in DTYPES) / MANY
    a_step = min(product_seconds(shape, rows, dtype) for dtype in DTYPES)
    products = (2 * trained + read) * shape.layer_weights + 3 * scored * head
    return OVERHEAD * (products * a_token + steps * (shape.layer_weights + head) * a_step)


def product_seconds(shape: Shape, rows: int, dtype: str) -> float:
    """Seconds a weight of a linear layer of the shape that takes `rows` vectors."""
    import torch

    kind = {"dtype": getattr(torch, dtype)}
    vectors = torch.ones(rows, shape.hidden, **kind)
    # As many as a model has: what fits the caches would be read faster.
    weights = [torch.ones(shape.intermediate, shape.hidden, **kind) for _ in range(16)]
    products, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SECONDS or not products:
        torch.nn.functional.linear(vectors, weights[products % len(weights)])
        products += 1
    return float(seconds / (products * weights[0].numel()))
