"""Which files of configs/ this machine can run, and why not."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.doctor.finding import Finding
from posttrain.doctor.installation import VLLM
from posttrain.doctor.machine import GPU
from posttrain.model.device import Device, check_device
from posttrain.model.estimate import PAIR_ROWS, estimate, phases
from posttrain.model.recipe import learning_rate_note, recipe
from posttrain.model.shape import shape_of
from posttrain.settings import RolloutModel, Section, TrainingSettings
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.settings.strict_yaml import read_yaml

NOT_MEASURED = "not measured"
# What to do where the phase that holds most does not fit.
SMALLER = {
    "step": "lower training.per_device_train_batch_size and raise gradient_accumulation_steps",
    "generation": "lower training.steps_per_generation or evaluation.batch_size",
    "scoring": f"lower evaluation.batch_size, which is {PAIR_ROWS} where it is null",
}


def look_at_configs(gpu: GPU | None) -> tuple[list[Finding], list[dict[str, Any]]]:
    """A finding for each config, and the same in figures for --json."""
    findings, facts = [], []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        finding, values = _look_at(path, gpu)
        findings.append(finding)
        facts.append({"config": finding.subject, "fits": finding.status == "ok", **values})
    return findings, facts


def _look_at(path: Path, gpu: GPU | None) -> tuple[Finding, dict[str, Any]]:
    name = str(path.relative_to(ROOT))
    try:
        settings: Any = load_settings(_settings_class(path), path)
    except ConfigError as error:
        return Finding(name, "fail", "cannot be read", str(error)), {"why": str(error)}
    shape = shape_of(settings.model.name)
    terms = None if shape is None else estimate(settings, shape)
    measured = measured_in(path)
    found = recipe(settings)
    figures = {**asdict(found), "tokens_a_step": found.tokens_a_step}
    why = _why_not(settings, gpu, terms)
    values = {"estimated_gb": terms, "measured": measured, "recipe": figures, "why": why}
    note = learning_rate_note(settings, shape) or ""
    steps = f"{found.duration()} steps" if found.steps is not None else found.duration()
    words = f"{steps}; a step is {found.step()}, at most {found.tokens_a_step:,} tokens"
    if why is not None:
        return Finding(name, "warn", why, note), values
    peak = f", about {terms['peak']:.1f} GB at its peak (estimated)" if terms else ""
    return Finding(name, "ok", f"fits{peak}", note, (words, *filter(None, [measured]))), values


def _settings_class(path: Path) -> type[Section]:
    """The class of settings that a config is for, by its method."""
    method = read_yaml(path).get("method")
    if method not in SETTINGS:
        names = " or ".join(f"'method: {name}'" for name in SETTINGS)
        raise ConfigError(f"{path}: doctor looks for {names}, and finds {method!r}")
    return SETTINGS[method]


def _why_not(
    settings: TrainingSettings, gpu: GPU | None, terms: dict[str, float] | None
) -> str | None:
    """Why a run would be refused or is out of the question; None if it fits."""
    model = settings.model
    if isinstance(model, RolloutModel) and model.fast_inference == "always" and not VLLM:
        return "samples with vLLM: for ./run --vllm"
    if gpu is None:
        return None if settings.model.min_gpu_memory_gb == 0 else "needs a GPU"
    device = Device(gpu.name, gpu.memory_gb or float("inf"), gpu.bf16)
    try:
        check_device(device, settings.model, settings.training)
    except ConfigError as error:
        return str(error)
    if terms and gpu.memory_gb and terms["peak"] > gpu.memory_gb:
        sizes = phases(terms)
        largest = max(sizes, key=lambda phase: sizes[phase])
        over = f"may not fit: the estimate is over the card's {gpu.memory_gb:.1f} GB"
        return f"{over}; {SMALLER[largest]}"
    return None


def measured_in(path: Path) -> str | None:
    """What the comment at the top of a config says was measured, None if nothing was."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line.lstrip("# ") for line in lines[: _header_length(lines)]]
    said = [line for line in header if "measured" in line.lower() or "peak memory" in line.lower()]
    found = [line for line in said if NOT_MEASURED not in line.lower()]
    return " ".join(found) or None


def _header_length(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
