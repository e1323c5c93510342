"""Every value under `training` in YAML reaches the trainer's configuration object as the scripts
build it, after Unsloth has patched its class; what is changed there is reported."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.run.folder import RunFolder
from posttrain.settings.command import load_settings
from posttrain.settings.extra import config_fields
from posttrain.settings.strict_yaml import read_yaml
from posttrain.train.arguments import changes
from scripts import dpo, grpo, sft
from tests.helpers import CONFIGS, ROOT, settings_class

pytestmark = pytest.mark.filterwarnings("error")
SCRIPTS = {"dpo": dpo, "grpo": grpo, "sft": sft}
# Requested beside what the YAML says: `training.extra` must arrive in the same way.
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
# Values that a library could put there instead.
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


def build(path: Path, *overrides: str) -> Any:
    """What a config says, its settings, the arguments that are requested and their object."""
    given = [f"training.{override}" for override in overrides]
    settings = load_settings(settings_class(path), path, given)
    run = RunFolder(ROOT / "outputs" / "unused")
    arguments, requested = SCRIPTS[settings.method].trainer_arguments(settings, run)
    return SimpleNamespace(
        written=read_yaml(path), settings=settings, requested=requested, arguments=arguments
    )


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def built(request: pytest.FixtureRequest) -> Any:
    return build(request.param, *(f"extra.{k}={json.dumps(v)}" for k, v in EXTRA.items()))


def test_every_value_reaches_the_trainer_or_is_reported(built: Any) -> None:
    """Read off the file itself, so that the settings classes cannot hide a change either."""
    import torch

    written, requested = built.written, built.requested
    wanted = {
        **requested,
        **built.settings.training.model_dump(exclude={"extra"}),
        **written["training"],
        **EXTRA,
        "run_name": written["run"]["name"],
        "report_to": [],
    }
    if "rewards" in written:
        wanted["reward_weights"] = list(written["rewards"].values())
    else:
        wanted["max_length"] = written["model"]["max_seq_length"]
    if "precompute_ref_log_probs" in wanted:
        wanted["precompute_ref_log_probs"] = False  # posttrain/train/reference_cache.py does it
    used = {name: getattr(built.arguments, name) for name in wanted}
    used = {name: getattr(value, "value", value) for name, value in used.items()}  # of an enum
    different = {
        name: {"asked": value, "used": used[name]}
        for name, value in wanted.items()
        if value is not None and used[name] != value  # null lets the library choose
    }
    assert changes(requested, built.arguments) == different
    if not torch.cuda.is_available():
        # No 8-bit optimizer and no float16 there.
        assert set(different) <= {"optim", "bf16", "fp16"}


def test_a_change_behind_our_back_is_found(built: Any) -> None:
    swapped = copy.copy(built.arguments)
    for name, value in PLANTED.items():
        setattr(swapped, name, value)
    expected = {
        name: {"asked": built.requested[name], "used": value}
        for name, value in PLANTED.items()
        if name in built.requested and built.requested[name] != value
    }
    assert len(expected) >= 7
    expected = {**changes(built.requested, built.arguments), **expected}
    assert changes(built.requested, swapped) == expected


def test_warm_up_is_a_share_of_all_steps_or_a_number_of_them(built: Any) -> None:
    requested = built.settings.training.warmup_steps
    expected = [requested * 100, requested * 1000] if requested < 1 else [requested, requested]
    actual = [built.arguments.get_warmup_steps(steps) for steps in (100, 1000)]
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize("method", SCRIPTS)
def test_the_names_that_extra_is_checked_against(method: str) -> None:
    """They are read from the source, because importing the classes takes too long."""
    import trl

    name = f"{method.upper()}Config"
    patched = getattr(trl, name)
    own = next(kind for kind in patched.__mro__ if kind.__module__.startswith("trl."))
    known = set(config_fields(f"trl/trainer/{method}_config.py:{name}"))
    assert known == {field.name for field in dataclasses.fields(own)}
    assert known <= {field.name for field in dataclasses.fields(patched)}


@pytest.mark.parametrize("override", REFUSED)
def test_a_value_that_the_class_refuses(override: str) -> None:
    with pytest.raises(ConfigError, match=r"^training: DPOConfig refuses it: ") as refused:
        build(CONFIGS[0], override)
    assert REFUSED[override] in str(refused.value) and "\n" not in str(refused.value)
