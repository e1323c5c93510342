"""What is said about the machine: one line to go on, or one to change the config."""

import re
from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model.device import Device, check_device
from posttrain.settings import DPOSettings, GRPOSettings
from posttrain.settings.command import SETTINGS, load_settings
from tests.helpers import CONFIGS, ROOT

CPU = Device("CPU", 0.0, bf16=True)
OLD_CPU = Device("CPU", 0.0, bf16=False)
T4 = Device("Tesla T4", 14.58, bf16=False)
L4 = Device("NVIDIA L4", 22.03, bf16=True)
H100 = Device("NVIDIA H100 80GB HBM3", 79.1, bf16=True)
LAPTOP = Device("NVIDIA GeForce RTX 4060 Laptop GPU", 7.65, bf16=True)
P4 = Device("Tesla P4", 7.43, bf16=False)


def settings(path: Path) -> DPOSettings | GRPOSettings:
    cls = SETTINGS[path.name.split("_")[0]]
    return load_settings(cls, path)


def said(device: Device, path: Path) -> str:
    asked = settings(path)
    line = check_device(device, asked.model, asked.training)
    assert line.strip() == line
    assert "\n" not in line
    return line


def refused(device: Device, path: Path) -> str:
    asked = settings(path)
    with pytest.raises(ConfigError) as caught:
        check_device(device, asked.model, asked.training)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert device.name in message
    return message


def by_kind(kind: str) -> list[Path]:
    found = [path for path in CONFIGS if path.stem.endswith(kind)]
    assert {path.name.split("_")[0] for path in found} >= {"dpo", "grpo"}
    return found


def has_t4(path: Path) -> bool:
    """Whether a config for bfloat16 is of the size that has one for a T4 too."""
    return settings(path).model.name == "Qwen/Qwen2.5-0.5B-Instruct"


ALL = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
T4_CONFIGS = pytest.mark.parametrize("path", by_kind("t4"), ids=lambda path: path.stem)
BF16_CONFIGS = pytest.mark.parametrize("path", by_kind("16gb"), ids=lambda path: path.stem)
DEMO_CONFIGS = pytest.mark.parametrize("path", by_kind("demo"), ids=lambda path: path.stem)


@ALL
@pytest.mark.parametrize("device", [CPU, OLD_CPU], ids=["bf16", "no bf16"])
def test_without_a_gpu_it_says_so_and_goes_on(device: Device, path: Path) -> None:
    line = said(device, path)
    assert "No GPU" in line
    assert "CPU" in line


@ALL
@pytest.mark.parametrize("device", [L4, H100], ids=lambda device: device.name)
def test_a_gpu_that_fits(device: Device, path: Path) -> None:
    line = said(device, path)
    assert device.name in line
    assert f"({device.memory_gb:.0f} GB)" in line


@T4_CONFIGS
def test_a_t4_runs_its_own_config(path: Path) -> None:
    assert "Tesla T4 (15 GB)" in said(T4, path)


@BF16_CONFIGS
def test_a_gpu_without_bfloat16_is_sent_to_the_t4_config(path: Path) -> None:
    message = refused(T4, path)
    assert "bfloat16" in message
    assert "training.bf16" in message
    named = f"use configs/{path.stem.replace('16bit_', '').replace('16gb', 't4')}.yaml"
    assert (named in message) == has_t4(path)
    assert ("use configs" in message) == has_t4(path)


@BF16_CONFIGS
def test_a_gpu_that_is_too_small(path: Path) -> None:
    message = refused(LAPTOP, path)
    assert "7.7 GB" in message or "7.6 GB" in message
    assert f"needs {settings(path).model.min_gpu_memory_gb:g} GB" in message


@BF16_CONFIGS
@pytest.mark.parametrize("device", [LAPTOP, P4], ids=lambda device: device.name)
def test_no_config_is_named_that_needs_more_memory_than_there_is(
    device: Device, path: Path
) -> None:
    """The config without bfloat16 needs as much memory as the one with it."""
    assert "use configs" not in refused(device, path)


@T4_CONFIGS
def test_a_gpu_that_is_too_small_is_told_what_to_lower(path: Path) -> None:
    message = refused(P4, path)
    assert "training.per_device_train_batch_size" in message
    assert "model.min_gpu_memory_gb" in message


@DEMO_CONFIGS
@pytest.mark.parametrize("device", [T4, LAPTOP, P4], ids=lambda device: device.name)
def test_the_demos_run_on_any_gpu(device: Device, path: Path) -> None:
    assert device.name in said(device, path)


@ALL
def test_the_need_itself_is_enough(path: Path) -> None:
    need = settings(path).model.min_gpu_memory_gb
    said(Device("Made to measure", need or 1.0, bf16=True), path)


@ALL
def test_the_config_without_bfloat16_exists_and_is_another(path: Path) -> None:
    named = settings(path).model.config_without_bf16
    assert (named is not None) == (path.stem.endswith("16gb") and has_t4(path))
    if named is not None:
        assert (ROOT / named).is_file()
        assert ROOT / named != path
        assert type(settings(ROOT / named)) is type(settings(path))


@ALL
@pytest.mark.parametrize("device", [T4, LAPTOP, P4], ids=lambda device: device.name)
def test_whoever_follows_the_advice_is_not_refused_again(device: Device, path: Path) -> None:
    asked = settings(path)
    try:
        check_device(device, asked.model, asked.training)
    except ConfigError as error:
        named = re.search(r"use (configs/\S+\.yaml)", str(error))
        if named is not None:
            said(device, ROOT / named[1])


@BF16_CONFIGS
def test_bfloat16_weights_need_a_gpu_that_has_it(path: Path) -> None:
    """Also where training.bf16 was switched off: the base weights would be computed in bfloat16."""
    overrides = ["training.bf16=false", "training.fp16=true"]
    cls = SETTINGS[path.name.split("_")[0]]
    asked = load_settings(cls, path, overrides)
    assert asked.model.dtype == "bfloat16"
    with pytest.raises(ConfigError, match=r"Tesla T4 .*bfloat16"):
        check_device(T4, asked.model, asked.training)
