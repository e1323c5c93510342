"""Which files of configs/ this machine can run, and why not."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.doctor import Finding
from posttrain.doctor.installation import VLLM
from posttrain.doctor.machine import GPU
from posttrain.model.device import ROWS_AT_ONCE, Device, check_device
from posttrain.model.estimate import GPU as GPU_SUM
from posttrain.model.estimate import estimate, phases, this_cpu
from posttrain.model.recipe import learning_rate_note, recipe
from posttrain.model.shape import shape_of
from posttrain.settings import RolloutModel, TrainingSettings
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.settings.strict_yaml import read_yaml

# What to do where the phase that needs most does not fit.
SMALLER = {
    "step": "lower training.per_device_train_batch_size and raise gradient_accumulation_steps",
    "generation": "lower training.steps_per_generation or evaluation.batch_size",
    "scoring": f"lower evaluation.batch_size, which is {ROWS_AT_ONCE} where it is null",
}


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
