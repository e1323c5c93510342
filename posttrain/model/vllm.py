"""Rollouts from vLLM: whether it is installed, and the arguments that Unsloth takes for it."""

import importlib.metadata
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.paths import run_command
from posttrain.settings import Lora, Model, RolloutModel


def check_vllm(model: Model) -> None:
    """Raise ConfigError where a config requires vLLM and it is not installed."""
    always = isinstance(model, RolloutModel) and model.fast_inference == "always"
    if always and not _has_vllm():
        raise ConfigError(
            f"model.fast_inference = always: this environment has no vLLM. {run_command()} --vllm "
            "grpo ... makes one that has and trains in it; auto or never train without"
        )


def _has_vllm() -> bool:
    """Whether vLLM is installed. Not by its import, which Unsloth hides where it cannot work."""
    return any(importlib.metadata.distributions(name="vllm"))


def vllm_arguments(model: Model, lora: Lora) -> dict[str, Any]:
    """Arguments for loading a model whose rollouts are sampled with vLLM; empty without vLLM.

    Raises ConfigError where a config requires vLLM and there is no GPU.
    """
    import torch

    if not isinstance(model, RolloutModel) or model.fast_inference == "never":
        return {}
    if not (_has_vllm() and torch.cuda.is_available()):
        if model.fast_inference == "auto":
            return {}
        raise ConfigError(
            "model.fast_inference = always: vLLM needs a GPU, and there is none; use auto or never"
        )
    rank = max(8, 1 << (lora.r - 1).bit_length())  # vLLM takes powers of two
    return {
        "fast_inference": True,
        "max_lora_rank": rank,
        "gpu_memory_utilization": model.gpu_memory_utilization,
    }
