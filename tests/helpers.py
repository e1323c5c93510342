"""What tests share: where things are, running a script, models of the real shape."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.model.shape import KNOWN
from posttrain.settings.command import SETTINGS, load_settings
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
# Beside the project, or carried inside it to a machine that has nothing else.
SHARED = next(
    (path for path in (ROOT.parent / "shared" / "data", ROOT / ".gpu" / "data") if path.is_dir()),
    ROOT.parent / "shared" / "data",
)
DEMO_MODEL = ROOT / "assets" / "demo_model"
DEMO_DATA = ROOT / "assets" / "demo_data"
OFFLINE = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
WARM = warm.Server({**os.environ, **OFFLINE})
Capsys = pytest.CaptureFixture[str]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def settings_class(path: Path) -> Any:
    """The settings of the script that a config of ours is for."""
    return SETTINGS[path.stem.partition("_")[0]]


def settings_of(config: str, *overrides: str) -> Any:
    """The settings of a config of ours, by its name, with some changed."""
    path = ROOT / "configs" / f"{config}.yaml"
    return load_settings(settings_class(path), path, overrides)


def demo_settings(method: str, *overrides: str) -> Any:
    """The settings of a method's demo, with some changed."""
    return settings_of(f"{method}_demo", *overrides)


def demo_command(method: str, output: Path, *more: str) -> list[str]:
    """The arguments of a method's script for its demo, with more of them."""
    config = ROOT / "configs" / f"{method}_demo.yaml"
    return ["--config", str(config), "--output", str(output), *more]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, *rows: Any) -> Path:
    """A JSONL file of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the public test data (GSM8K, Qwen2.5 tokenizer) is not beside us"
)


def start_script(
    *arguments: str | Path,
    cwd: Path = ROOT,
    stdin: str = "",
    project: Path = ROOT,
    **environment: str,
) -> warm.Process | subprocess.Popen[str]:
    """Start `python scripts/NAME.py ARGS` of a project's folder, offline.

    In a fork of a process that has imported the libraries, where its environment allows that.
    """
    name, *rest = (str(argument) for argument in arguments)
    command = [str(project / "scripts" / f"{name}.py"), *rest]
    variables = {**os.environ, **OFFLINE, **environment}
    if WARM.usable(variables):
        return WARM.popen(command, cwd, variables, stdin)
    # What is given on standard input fits a pipe's buffer.
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(stdin)
    with os.fdopen(read) as pipe:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=pipe,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=variables,
        )


def run_script(
    *arguments: str | Path, timeout: float = 600, **more: Any
) -> subprocess.CompletedProcess[str]:
    """As `start_script`, to the script's end; returns code and output."""
    process = start_script(*arguments, **more)
    try:
        output = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *output)


def copy_project(into: Path) -> Path:
    """The project's files, as a download without git history would have them; .venv is ours."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, text=True).splitlines():
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)
    (into / ".venv").symlink_to(sys.prefix)
    return into


def make_qwen(folder: Path, tokenizer: Path, **shape: int) -> Path:
    """A Qwen2.5 model with random weights and a real tokenizer; the 0.5B's shape by default.

    With a `head_dim` in its shape it is a Qwen3 model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(
        "qwen3" if "head_dim" in shape else "qwen2",
        **{**KNOWN["Qwen/Qwen2.5-0.5B-Instruct"], **shape},
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        bos_token_id=151643,
        eos_token_id=151645,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, spread: float = 0.003, **options: object) -> Path:
    """A LoRA adapter as training leaves one: no B is zero. `options` are LoraConfig's.

    `spread` is the standard deviation of B; 0.003 changes weights of a 0.5B by a few percent.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"r": 16, "lora_alpha": 32, "target_modules": linear, **options}
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(task_type="CAUSAL_LM", **config),
    )
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=spread)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
