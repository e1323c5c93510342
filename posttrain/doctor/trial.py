"""How long a step of a CPU config takes here, from matrix products of its shape, timed in seconds.

A step is its products: each weight with each token in the forward pass and again for the gradient
of its input (the output layer's with each scored token, three times), and each weight with all rows
of a decoding step, as if no completion ended before its limit.
"""

import time
from typing import Any

from posttrain.base.paths import ROOT
from posttrain.base.processor import free_cores
from posttrain.doctor import Finding
from posttrain.model.shape import Shape, shape_of
from posttrain.settings import DPOSettings, GRPOSettings, TrainingSettings
from posttrain.settings.command import SETTINGS, load_settings

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


def look_at_steps() -> list[Finding]:
    """About how long a step of each config for a CPU takes here; loads torch."""
    import torch

    torch.set_num_threads(free_cores())
    findings = []
    for path in sorted((ROOT / "configs").glob("*_cpu.yaml")):
        settings: Any = load_settings(SETTINGS[path.name.partition("_")[0]], path)
        if shape := shape_of(settings.model.name):
            seconds, steps = seconds_a_step(settings, shape), settings.training.max_steps
            text = f"about {seconds:.0f} s a step, {steps} steps in {seconds * steps / 3600:.1f} h"
            findings.append(Finding(str(path.relative_to(ROOT)), "ok", text))
    return findings


def seconds_a_step(settings: TrainingSettings, shape: Shape) -> float:
    """Seconds of an optimizer step with the number type that is faster here."""
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
