"""The second environment, where rollouts can come from vLLM: its lock, and how ./run takes it."""

import re
import subprocess
import tomllib
from pathlib import Path
from unittest.mock import patch

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from posttrain.base.errors import ConfigError
from posttrain.doctor import configs, installation, machine
from posttrain.model import policy
from posttrain.settings import Lora, RolloutModel
from tests.helpers import ROOT, copy_project
from tests.unit.conftest import write_file

IN = ROOT / "requirements-vllm.in"


def lines(path: Path) -> list[Requirement]:
    texts = (line.partition(" #")[0] for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(text) for text in texts if text and not text.startswith("#")]


def pyproject() -> list[Requirement]:
    result = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [Requirement(text) for text in result["project"]["dependencies"]]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-vllm.lock"])
def test_a_lock_holds_what_is_asked_for(name: str) -> None:
    """pyproject.toml, for vLLM with what requirements-vllm.in puts in place of its pins."""
    pins = installation.locked(ROOT / name)
    others = {r.name: r for r in lines(IN)} if "vllm" in name else {}
    requested = {r.name: r for r in pyproject()} | others
    assert len(requested) > 20
    for requirement in requested.values():
        if requirement.marker and not requirement.marker.evaluate():
            assert requirement.name not in pins
            continue
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(pin), prereleases=True), requirement


def test_the_locks_differ_only_where_vllm_asks_for_it() -> None:
    main, other = (installation.locked(ROOT / f"requirements{x}.lock") for x in ("", "-vllm"))
    others = {requirement.name for requirement in lines(IN)}
    pins = [r.name for r in pyproject() if str(r.specifier).startswith("==")]
    shared = [canonicalize_name(name) for name in pins if name not in others]
    assert len(shared) > 7
    assert {name: main[name] for name in shared} == {name: other[name] for name in shared}


def test_trl_takes_the_vllm_of_the_lock() -> None:
    """By trl's own check, which warns of a version outside of its range."""
    from trl import import_utils

    version = installation.locked(ROOT / "requirements-vllm.lock")["vllm"]
    with patch.object(import_utils, "_is_package_available", lambda *_, **__: (True, version)):
        assert import_utils.is_vllm_available()  # a warning would be an error


def with_driver(folder: Path, version: str | None) -> subprocess.CompletedProcess[str]:
    """`./run --vllm python -c ''` with that driver, where the environment is not there."""
    tools = folder / "tools"
    tools.mkdir()
    answers = {"mktemp": "echo 'it would install now' >&2; exit 1"}
    if version is not None:
        answers["nvidia-smi"] = f"echo '{version}'"
    for name, answer in answers.items():
        (tools / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        ["./run", "--vllm", "python", "-c", ""],
        cwd=copy_project(folder / "project"),
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", ["570.86.15", "580.42"])
def test_an_old_driver_is_refused_before_installation(version: str, tmp_path: Path) -> None:
    done = with_driver(tmp_path, version)
    assert done.returncode == 2
    assert f"needs NVIDIA driver 580.65 or later (CUDA 13); here is {version}" in done.stderr
    assert "it would install now" not in done.stderr


@pytest.mark.parametrize("version", ["580.65.06", "[N/A]", None])
def test_a_new_driver_or_none_is_not(tmp_path: Path, version: str | None) -> None:
    assert "it would install now" in with_driver(tmp_path, version).stderr


def test_without_vllm_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RolloutModel(name="x", fast_inference="always")
    monkeypatch.setattr(policy, "_has_vllm", lambda: False)
    with pytest.raises(ConfigError, match=r"/run --vllm grpo"):
        policy.check_vllm(model)
    policy.check_vllm(model.model_copy(update={"fast_inference": "never"}))
    monkeypatch.setattr(policy, "_has_vllm", lambda: True)
    policy.check_vllm(model)


def test_without_a_gpu_vllm_is_left_out_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(policy, "_has_vllm", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto = RolloutModel(name="x", fast_inference="auto")
    assert policy.vllm_arguments(auto, Lora()) == {}
    with pytest.raises(ConfigError, match=r"fast_inference = always: vLLM needs a GPU"):
        policy.vllm_arguments(auto.model_copy(update={"fast_inference": "always"}), Lora())


def test_the_doctor_says_which_environment_a_config_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "configs" / "grpo_gsm8k_t4.yaml").read_text(encoding="utf-8")
    always = re.sub(r"(?m)^(  name: Qwen.*)$", r"\1\n  fast_inference: always", text)
    write_file(tmp_path / "configs" / "grpo.yaml", always)
    monkeypatch.setattr(configs, "ROOT", tmp_path)
    t4 = machine.GPU("Tesla T4", "580.65.06", 15.0, 0.0, 7.5)
    (finding,), _ = configs.look_at_configs(t4)
    assert "./run --vllm" in finding.text
    monkeypatch.setattr(configs, "VLLM", True)
    (finding,), _ = configs.look_at_configs(t4)
    assert "vLLM" not in finding.text


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_installs_and_trains(tmp_path: Path) -> None:
    """From nothing, on the CPU. Without a driver Unsloth leaves vLLM out of it."""
    project = copy_project(tmp_path / "project")
    command = ["./run", "--vllm", "grpo", "--config", "configs/grpo_demo.yaml"]
    few = ["training.max_steps=2", "training.save_steps=2", "evaluation.limit=8"]
    done = subprocess.run([*command, *few], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    versions = (project / "outputs" / "grpo_demo" / "environment.json").read_text()
    assert '"torch": "2.11' in versions
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    result = subprocess.check_output(["./run", "--vllm", "python", "-c", code], cwd=project)
    assert result.decode().strip() == installation.locked(ROOT / "requirements-vllm.lock")["vllm"]
