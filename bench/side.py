"""One measurement, in a process of its own: Unsloth patches transformers and trl as a whole.

    python bench/side.py SPEC.json RESULT.json

Started by gpu.py, step by step the same on every side but for who builds the trainer:
- `project`: scripts/grpo.py's or dpo.py's own build_trainer, on the policy that they load, trained
  through posttrain/train/loop.py with its callbacks, sample records and metrics.
- `stock`: transformers, peft, bitsandbytes and trl as their own documentation puts them together;
  the same model, data, LoRA, batch, lengths, precision and trainer arguments. Unsloth is not
  imported.
- `stock_16bit`: the same with the base weights in 16 bits.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench import devices
from bench.lengths import force_lengths, recorded_lengths
from bench.sides import Spec, build_project, build_stock, seed_adapter
from bench.watch import Clock, Rollouts, fix_rollouts, watch_batches, watch_rollouts
from posttrain.model import runtime
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings
from posttrain.settings.command import SETTINGS, load_settings

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo")


def measure(spec: Spec) -> dict[str, Any]:
    """Build the side, train it, and say what was seen."""
    started = time.perf_counter()
    overrides = [*spec.overrides, *run_overrides(spec)]
    settings: Any = load_settings(SETTINGS[spec.task], Path(spec.config), overrides)
    if spec.side == "project":
        runtime.start(settings.run.verbose, settings.run.threads)
    import torch

    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    limit_device(spec)  # once Unsloth has set up the allocator
    run = RunFolder(Path(os.environ["BENCH_RUN"]))
    build = build_project if spec.side == "project" else build_stock
    trainer, train = build(spec, settings, run)
    if spec.adapter_seed is not None:
        if "ref" in trainer.model.peft_config:  # the copy that stock trl adds
            trainer.model.delete_adapter("ref")
        seed_adapter(trainer.model, spec.adapter_seed)
    clock = Clock()
    rollouts, batches = Rollouts(), []
    if spec.task == "dpo":
        batches = watch_batches(trainer)
    else:
        longest = settings.training.max_completion_length
        if spec.lengths == "fixed":
            fix_rollouts(trainer, longest)
        elif spec.lengths == "recorded":
            ends = [trainer.processing_class.eos_token_id, *trainer.eos_token_ids]
            stream: Iterator[int] = (
                repeat(longest + 1) if spec.longest else recorded_lengths(longest)
            )
            force_lengths(stream, list(dict.fromkeys(ends)))
        rollouts = watch_rollouts(trainer, clock)
    trainer.add_callback(clock.callback())
    loaded = clock.now()[0] - started
    memory_after_load = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
    train()
    return {
        **environment(trainer),
        "seconds_to_load": round(loaded, 2),
        **timing(spec, settings, clock),
        **memory(memory_after_load),
        **throughput(spec, settings, trainer, clock, rollouts, batches),
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }


def run_overrides(spec: Spec) -> list[str]:
    """Settings that every measurement has: as many steps as it needs, no save before the end."""
    loaded = load_settings(SETTINGS[spec.task], Path(spec.config), spec.overrides)
    cycle = steps_a_cycle(loaded)
    steps = cycle * (spec.warmup + spec.cycles)
    return [f"training.max_steps={steps}", f"training.save_steps={cycle * 1000}"]


def steps_a_cycle(settings: Any) -> int:
    """Optimizer steps between two generations; 1 for DPO."""
    t = settings.training
    if isinstance(settings, DPOSettings):
        return 1
    micro = (t.steps_per_generation or t.gradient_accumulation_steps) * t.num_iterations
    return max(1, micro // t.gradient_accumulation_steps)


def limit_device(spec: Spec) -> None:
    """Cap the memory that PyTorch may take and the kernels that it may use."""
    import torch

    if not torch.cuda.is_available():
        return
    if spec.memory_limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, spec.memory_limit * 2**30 / total))
    if not spec.flash:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def device_name() -> str:
    """The first GPU's name, or CPU."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def environment(trainer: Any) -> dict[str, Any]:
    """Versions, the device, and what the trainer really is and does."""
    arguments, trainable = trainer.args, [p for p in trainer.model.parameters() if p.requires_grad]
    names = (
        *("optim", "bf16", "fp16", "gradient_checkpointing", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "loss_type", "beta", "num_generations"),
        *("steps_per_generation", "max_completion_length", "use_vllm", "temperature"),
    )
    used = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return {
        "device": device_name(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in PACKAGES},
        "trainer": [k.__name__ for k in type(trainer).__mro__ if k.__name__.endswith("OTrainer")],
        "unsloth_imported": "unsloth" in sys.modules,
        "xformers_imported": "xformers.ops" in sys.modules,
        "adapter_parameters": sum(p.numel() for p in trainable),
        "adapter_dtype": sorted({str(p.dtype) for p in trainable}),
        "arguments": {name: str(getattr(value, "value", value)) for name, value in used.items()},
    }


def timing(spec: Spec, settings: Any, clock: Clock) -> dict[str, Any]:
    """Seconds a step: the median over the measured cycles, each divided by its steps."""
    cycle = steps_a_cycle(settings)
    ends = clock.steps[cycle * spec.warmup :: cycle]
    clocked, process = ([(b[i] - a[i]) / cycle for a, b in pairwise(ends)] for i in (0, 1))
    return {
        "steps_a_cycle": cycle,
        "seconds_first_step": round(clock.steps[1][0] - clock.steps[0][0], 3),
        "seconds_a_step": round(statistics.median(clocked), 4),
        "seconds_of_each": [round(value, 4) for value in clocked],
        "process_seconds_a_step": round(statistics.median(process), 4),
        "seconds_after_last_step": round((clock.ended or 0) - clock.steps[-1][0], 3),
    }


def memory(after_load: int | None) -> dict[str, Any]:
    """Peaks since the process started, in GiB."""
    import torch

    if after_load is None:
        return {
            "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
        }
    return {
        "loaded_gib": round(after_load / 2**30, 3),
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
    }


def stored_bytes(model: Any) -> int:
    """Bytes of all weights as they lie in memory, shared ones once, scales of 4-bit ones too."""
    seen: dict[int, int] = {}
    for weight in model.parameters():
        seen[weight.data_ptr()] = weight.numel() * weight.element_size()
        state = getattr(weight, "quant_state", None)
        for scales in (
            getattr(state, "absmax", None),
            getattr(getattr(state, "state2", None), "absmax", None),
        ):
            if scales is not None:
                seen[scales.data_ptr()] = scales.numel() * scales.element_size()
    return sum(seen.values())


def throughput(
    spec: Spec,
    settings: Any,
    trainer: Any,
    clock: Clock,
    rollouts: Rollouts,
    batches: list[tuple[int, Any, Any]],
) -> dict[str, Any]:
    """Rates at the median step's speed, and shares of what the device could do.

    The median, so that a step in which something is compiled once does not count.
    """
    t, cycle = settings.training, steps_a_cycle(settings)
    first, steps = cycle * spec.warmup, cycle * spec.cycles
    seconds = timing(spec, settings, clock)["seconds_a_step"] * steps
    adapter = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    shape = devices.Shape.of(trainer.model.config, adapter)
    compute, bandwidth = devices.peaks(device_name()) or (None, None)
    rows = t.per_device_train_batch_size * t.gradient_accumulation_steps * steps
    if spec.task == "dpo":
        measured = [(complete, reply) for step, complete, reply in batches if step >= first]
        lengths = [
            (int(n), int(k))
            for complete, reply in measured
            for n, k in zip(complete.sum(1), reply.sum(1), strict=True)
        ]
        padded = sum(complete.numel() for complete, _ in measured)
        precomputed = t.precompute_ref_log_probs
        tokens = sum(n for n, _ in lengths)
        flops = devices.dpo_flops(shape, lengths, precomputed)
        return {
            "pairs_a_second": round(rows / seconds, 3),
            "tokens_a_second": round(tokens / seconds, 1),
            "padding_share": round(1 - tokens / padded, 4),
            "model_flops_utilisation": devices.share(flops, seconds, compute),
        }
    measured_calls = [i for i, step in enumerate(rollouts.step) if step >= first]
    lengths = [pair for i in measured_calls for pair in rollouts.lengths[i]]
    seconds_a_call = statistics.median(rollouts.seconds[i] for i in measured_calls)
    generating = seconds_a_call * len(measured_calls)
    completions = [c for _, c in lengths]
    generation, trained = devices.grpo_flops(shape, lengths)
    trained *= t.num_iterations
    weights = stored_bytes(trainer.model)
    moved = sum(devices.decoding_bytes(shape, weights, rollouts.lengths[i]) for i in measured_calls)
    return {
        "completions_a_second": round(rows / t.num_iterations / seconds, 3),
        "tokens_a_second": round(sum(completions) / seconds, 1),
        "completion_tokens": {
            "median": statistics.median(completions),
            "longest": max(completions),
            "at_the_limit": sum(c >= t.max_completion_length for c in completions),
        },
        "generation": {
            "share_of_step": round(generating / seconds, 4),
            "seconds_a_call": round(seconds_a_call, 4),
            "rows_a_call": len(rollouts.lengths[-1]),
            "tokens_a_second": round(sum(completions) / generating, 1),
            "weight_bytes": weights,
            "bandwidth_utilisation": devices.share(moved, generating, bandwidth),
        },
        "training_share_of_step": round(1 - generating / seconds, 4),
        "model_flops_utilisation": devices.share(generation + trained, seconds, compute),
        "training_flops_utilisation": devices.share(trained, seconds - generating, compute),
    }


def main() -> int:
    spec_file, result_file = map(Path, sys.argv[1:3])
    spec = Spec(**json.loads(spec_file.read_text(encoding="utf-8")))
    os.environ.update(spec.environment)
    result = {"spec": asdict(spec), **measure(spec)}
    result_file.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
