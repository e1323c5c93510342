"""Every value under `training` in YAML reaches the trainer's real configuration object.

Unsloth patches what is imported after it, so the side without it is built in another interpreter:
this file, run as `python -m`, prints JSON.
"""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model import runtime
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings, SFTSettings
from posttrain.settings.command import load_settings
from posttrain.settings.strict_yaml import read_yaml
from posttrain.settings.trainer_fields import config_fields
from posttrain.train.arguments import build_arguments, changes, owned_arguments
from tests.helpers import CONFIGS, ROOT, settings_class

# Also asked for, beside what the YAML says: `training.extra` must arrive in the same way.
EXTRA = {"adam_beta1": 0.85, "adam_epsilon": 1e-7, "dataloader_drop_last": True}
# Values that the libraries refuse, and what of them is in the message.
REFUSED = {
    "lr_scheduler_type=cosin": "cosin",
    "optim=adamw_typo": "adamw_typo",
    # By what is made of them once the model is loaded.
    "optim=galore_adamw": "galore",
    "extra.lr_scheduler_kwargs={nope: 1}": "nope",
    "extra.dataloader_prefetch_factor=2": "dataloader_prefetch_factor",
    "extra.dataloader_persistent_workers=true": "persistent_workers",
}


def settings_for(path: Path, *overrides: str) -> Any:
    cls = settings_class(path)
    return load_settings(cls, path, [f"training.{override}" for override in overrides])


# --- in an interpreter of its own ---------------------------------------------------------------


def build(settings: Any) -> tuple[Any, dict[str, Any]]:
    """The configuration object and what it was asked for, as the scripts build them."""
    from trl import DPOConfig, GRPOConfig, SFTConfig

    run = RunFolder(ROOT / "outputs" / "unused")
    owned = owned_arguments(run, settings.run.name, settings.tracking.report_to)
    if isinstance(settings, DPOSettings):
        owned["max_length"] = settings.model.max_seq_length
        return build_arguments(DPOConfig, settings.training, owned, verbose=False)
    if isinstance(settings, SFTSettings):
        owned["max_length"] = settings.model.max_seq_length
        return build_arguments(SFTConfig, settings.training, owned, verbose=False)
    owned["reward_weights"] = list(settings.rewards.values())
    return build_arguments(GRPOConfig, settings.training, owned, verbose=False)


def probe(side: str) -> dict[str, Any]:
    """What the real classes make of every config, with stock trl or after Unsloth."""
    if side == "unsloth":
        runtime.start(verbose=False, threads=1)
    import torch
    from trl import DPOConfig, GRPOConfig

    # Without a GPU transformers refuses bf16, except with use_cpu; after Unsloth even without it.
    on_cpu = not torch.cuda.is_available()
    overrides = ["extra.use_cpu=true"] if on_cpu and side == "stock" else []
    extra = [f"extra.{name}={json.dumps(value)}" for name, value in EXTRA.items()]
    actual: dict[str, Any] = {
        "unsloth": "unsloth" in sys.modules,
        "on_cpu": on_cpu,
        "fields": {
            cls.__name__: sorted(field.name for field in dataclasses.fields(cls))
            for cls in (DPOConfig, GRPOConfig)
        },
        "configs": {},
        "refused": {},
    }
    for path in CONFIGS:
        arguments, requested = build(settings_for(path, *overrides, *extra))
        actual["configs"][path.stem] = {
            "asked": requested,
            "used": {name: plain(getattr(arguments, name, None)) for name in requested},
            "changes": changes(requested, arguments),
            "planted": planted(arguments, requested),
            "warmup": [arguments.get_warmup_steps(steps) for steps in (100, 1000)],
        }
    for override in REFUSED:
        try:
            build(settings_for(CONFIGS[0], *overrides, override))
        except ConfigError as error:
            actual["refused"][override] = str(error)
    return actual


def planted(arguments: Any, requested: dict[str, Any]) -> dict[str, Any]:
    """The changes that are found when some values are swapped for others behind our back."""
    swapped = copy.copy(arguments)
    for name, value in PLANTED.items():
        setattr(swapped, name, value)
    return changes(requested, swapped)


PLANTED = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 3,
    "beta": 0.001,
    "loss_type": "bnpo",
    "adam_beta1": 0.9,
    "logging_nan_inf_filter": True,
    "report_to": ["wandb"],
    "max_steps": 7,
}


def plain(value: Any) -> Any:
    """A value as JSON has it; an enum member stands for its name."""
    return getattr(value, "value", value)


# --- what came out ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.e2e.test_training_arguments"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    actual: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return actual


@pytest.fixture(scope="module")
def after_unsloth() -> dict[str, Any]:
    return dict(json.loads(json.dumps(probe("unsloth"))))


EVERY_CONFIG = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def same(requested: Any, used: Any) -> bool:
    """Equal, but for the two forms that transformers turns around."""
    return (requested == used and type(requested) is type(used)) or (requested, used) == (
        "none",
        [],
    )


def differences(config: dict[str, Any]) -> set[str]:
    """Arguments that were asked for and came out otherwise; null asks for nothing."""
    requested, used = config["asked"], config["used"]
    return {
        name
        for name in requested
        if requested[name] is not None and not same(requested[name], used[name])
    }


def test_the_two_sides_are_what_they_say(
    stock: dict[str, Any], after_unsloth: dict[str, Any]
) -> None:
    assert (stock["unsloth"], after_unsloth["unsloth"]) == (False, True)


@EVERY_CONFIG
def test_every_training_value_of_the_yaml_reaches_the_trainer(
    path: Path, stock: dict[str, Any]
) -> None:
    """Read off the file itself, so that the settings classes cannot hide a change either."""
    written = read_yaml(path)
    used = stock["configs"][path.stem]["used"]
    assert {name: used[name] for name in written["training"]} == written["training"]
    assert {name: used[name] for name in EXTRA} == EXTRA
    if "rewards" not in written:
        assert used["max_length"] == written["model"]["max_seq_length"]
    else:
        assert used["reward_weights"] == list(written["rewards"].values())
    assert used["run_name"] == written["run"]["name"]
    assert used["report_to"] == []


@EVERY_CONFIG
def test_every_default_of_ours_reaches_the_trainer_too(path: Path, stock: dict[str, Any]) -> None:
    config = stock["configs"][path.stem]
    assert differences(config) == set()
    assert config["changes"] == {}
    settings = settings_for(path).training.model_dump(exclude={"extra"})
    assert settings.items() <= config["asked"].items()


@EVERY_CONFIG
def test_after_unsloth_every_difference_is_reported(
    path: Path, after_unsloth: dict[str, Any]
) -> None:
    config = after_unsloth["configs"][path.stem]
    assert set(config["changes"]) == differences(config)
    for name, change in config["changes"].items():
        assert change["asked"] == config["asked"][name]
        assert change["used"] == config["used"][name]
    if after_unsloth["on_cpu"]:
        # No 8-bit optimizer and no float16 there.
        assert set(config["changes"]) <= {"optim", "bf16", "fp16"}


@EVERY_CONFIG
@pytest.mark.parametrize("side", ["stock", "after_unsloth"])
def test_a_change_behind_our_back_is_found(
    path: Path, side: str, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(side)["configs"][path.stem]
    expected = {
        name: {"asked": config["asked"][name], "used": value}
        for name, value in PLANTED.items()
        if name in config["asked"] and config["asked"][name] != value
    }
    actual = {name: config["planted"][name] for name in config["planted"] if name in PLANTED}
    assert actual == expected
    assert len(expected) >= 7
    assert set(config["planted"]) - set(PLANTED) == set(config["changes"])


@EVERY_CONFIG
def test_warm_up_is_a_share_of_all_steps_or_a_number_of_them(
    path: Path, stock: dict[str, Any]
) -> None:
    requested = settings_for(path).training.warmup_steps
    expected = [requested * 100, requested * 1000] if requested < 1 else [requested, requested]
    assert stock["configs"][path.stem]["warmup"] == pytest.approx(expected)


@pytest.mark.parametrize("side", ["stock", "after_unsloth"])
def test_the_names_that_extra_is_checked_against(side: str, request: pytest.FixtureRequest) -> None:
    """They are read from the source, because importing the classes takes too long."""
    fields = request.getfixturevalue(side)["fields"]
    for name in ("DPOConfig", "GRPOConfig"):
        source = f"trl/trainer/{name.removesuffix('Config').lower()}_config.py:{name}"
        known = set(config_fields(source))
        if side == "stock":
            assert known == set(fields[name])
        else:  # Unsloth may add arguments of its own
            assert known <= set(fields[name])


@pytest.mark.parametrize("override", REFUSED)
@pytest.mark.parametrize("side", ["stock", "after_unsloth"])
def test_a_value_that_the_class_refuses(
    override: str, side: str, request: pytest.FixtureRequest
) -> None:
    message = request.getfixturevalue(side)["refused"][override]
    assert message.startswith("training: DPOConfig refuses it: ")
    assert REFUSED[override] in message and "\n" not in message


if __name__ == "__main__":
    print(json.dumps(probe("stock")))
