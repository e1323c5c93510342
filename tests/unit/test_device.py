"""Whether the machine can run a config: one line that names it, or one with what to change.

Which configs fit which card is in test_doctor.py.
"""

from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model.device import Device, check_device
from tests.helpers import CONFIGS, ROOT, settings_of

T4 = Device("Tesla T4", 14.58, bf16=False)
L4 = Device("NVIDIA L4", 22.03, bf16=True)
LAPTOP = Device("NVIDIA GeForce RTX 4060 Laptop GPU", 7.65, bf16=True)
P4 = Device("Tesla P4", 7.43, bf16=False)


def line(device: Device, path: Path, *overrides: str) -> str:
    """The line printed where a device can run a config."""
    given = settings_of(path.stem, *overrides)
    return check_device(device, given.model, given.training)


def refused(device: Device, path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        line(device, path, *overrides)
    message = str(caught.value)
    assert "\n" not in message and device.name in message
    return message


def by_kind(kind: str) -> list[Path]:
    return [path for path in CONFIGS if path.stem.endswith(kind)]


def has_t4(path: Path) -> bool:
    """Whether a config for bfloat16 is of the size that has one for a T4 too."""
    return bool(settings_of(path.stem).model.name == "Qwen/Qwen2.5-0.5B-Instruct")


def test_every_config() -> None:
    for path in CONFIGS:
        assert "No GPU" in line(Device("CPU", 0.0, bf16=False), path)
        assert "NVIDIA L4 (22 GB)" in line(L4, path)
        model = settings_of(path.stem).model
        line(Device("Made to measure", model.min_gpu_memory_gb or 1.0, bf16=True), path)
        other = model.config_without_bf16
        assert (other is not None) == (path.stem.endswith("16gb") and has_t4(path)), path
        if other is not None:
            line(T4, ROOT / other)


def test_an_old_card() -> None:
    for path in by_kind("t4"):
        assert "Tesla T4 (15 GB)" in line(T4, path)
        message = refused(P4, path)
        assert "training.per_device_train_batch_size" in message
        assert "model.min_gpu_memory_gb" in message
    for path in by_kind("demo"):
        line(P4, path)


@pytest.mark.parametrize("path", by_kind("16gb"), ids=lambda path: path.stem)
def test_a_config_for_bfloat16(path: Path) -> None:
    message = refused(T4, path)
    assert "has no bfloat16, which training.bf16 needs" in message
    named = f"use configs/{path.stem.replace('16bit_', '').replace('16gb', 't4')}.yaml"
    assert (named in message) == ("use configs" in message) == has_t4(path)
    assert f"needs {settings_of(path.stem).model.min_gpu_memory_gb:g} GB" in refused(LAPTOP, path)
    # The config without bfloat16 needs as much memory, so it is not named where that lacks.
    assert "use configs" not in refused(P4, path)
    # The base weights would be computed in bfloat16.
    message = refused(T4, path, "training.bf16=false", "training.fp16=true")
    assert "which model.dtype needs" in message


def test_number_type_of_a_processor() -> None:
    config = ROOT / "configs" / "grpo_gsm8k_cpu.yaml"
    with_bf16, without = (Device("CPU", 0.0, bf16, threads=2) for bf16 in (True, False))
    assert line(with_bf16, config) == "No GPU here: training on the CPU, 2 threads, in bfloat16."
    assert line(without, config) == "No GPU here: training on the CPU, 2 threads, in float32."
    assert "emulates" in line(without, config, "model.dtype=bfloat16")
    assert "emulates" not in line(with_bf16, config, "model.dtype=bfloat16")
