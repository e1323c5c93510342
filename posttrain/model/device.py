"""The device that a policy will run on, and whether it can run a config."""

from dataclasses import dataclass

from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.settings import Model, Training
from posttrain.settings.strict_yaml import read_yaml


@dataclass(frozen=True)
class Device:
    """What the policy will run on."""

    name: str
    memory_gb: float
    """Memory of the GPU in GB (10^9 bytes would be the maker's; this is 2^30); 0 without a GPU."""
    bf16: bool
    """The device computes in bfloat16 itself, without emulation."""


def check_device(device: Device, model: Model, training: Training) -> str:
    """One line about where the run takes place.

    Raises:
        ConfigError: the GPU cannot run this config, with the one to use instead.
    """
    instead = _instead(device, model)
    if device.memory_gb == 0:
        return "No GPU here: training on the CPU (slow for anything but the demo models)."
    for setting, asked in (("training.bf16", training.bf16), ("model.dtype", model.dtype)):
        if asked in (True, "bfloat16") and not device.bf16:
            raise ConfigError(f"{device.name} has no bfloat16, which {setting} asks for{instead}")
    if device.memory_gb < model.min_gpu_memory_gb:
        raise ConfigError(
            f"{device.name} has {device.memory_gb:.1f} GB of memory and this config needs "
            f"{model.min_gpu_memory_gb:g} GB{instead}; or lower "
            "training.per_device_train_batch_size and, once it fits, model.min_gpu_memory_gb"
        )
    return f"Training on {device.name} ({device.memory_gb:.0f} GB)."


def _instead(device: Device, model: Model) -> str:
    """The advice to use the smaller config, where this device has the memory for it."""
    if model.smaller_config is None:
        return ""
    needs = read_yaml(ROOT / model.smaller_config)["model"].get("min_gpu_memory_gb", 0)
    return f"; use {model.smaller_config} instead" if device.memory_gb >= needs else ""
