"""docs/troubleshooting.md: each quoted message is what the program prints.

Messages are read from the first column of the page's tables. They must be texts of the program.
Where no other test has it, or a value is part of what is quoted, the symptom is caused here without
a card. Links, files, commands and settings are tested for all pages in test_readme.py.
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.base.disk import check_disk, disk_full_error
from posttrain.base.errors import PostTrainError
from posttrain.base.files import write_json
from posttrain.data.sources import read_rows
from posttrain.doctor import Finding
from posttrain.doctor.machine import look_for_gpu
from posttrain.doctor.services import look_at_services
from posttrain.export import llama_cpp
from posttrain.export.proof import at_most
from posttrain.export.weights import MOST_LOST
from posttrain.model import pretrained
from posttrain.model.device import Device, check_device
from posttrain.model.policy import check_vllm
from posttrain.report import export_words
from posttrain.run.checkpoint import check_same_run
from posttrain.run.folder import RunFolder
from posttrain.settings import Source
from posttrain.train.stop import StopRequest
from posttrain.train.watch import Watch
from scripts import dpo
from tests.helpers import DEMO_MODEL, ROOT, Capsys, demo_command, settings_of
from tests.quickstarts.pages import prose, text_of

PAGE = ROOT / "docs" / "troubleshooting.md"


def rows() -> list[tuple[str, str, str]]:
    """What is seen, its cause and its fix: the rows of the tables."""
    lines = [line for line in text_of(PAGE).splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]
    return [cell for cell in cells if cell[0] != "what you see"]  # type: ignore[misc]


def messages(seen: str) -> list[str]:
    return re.findall(r"`([^`]+)`", seen)


def is_printed(message: str, output: str) -> bool:
    """Whether a quoted message is in an output: white space counts as one space, and … is any."""
    pattern = ".*?".join(re.escape(" ".join(part.split())) for part in message.split("…"))
    pattern = pattern.replace(".*?", r"\s?.*?\s?")
    return re.search(pattern, " ".join(output.split())) is not None


# --- symptoms, caused ---------------------------------------------------------------------------

Scene = SimpleNamespace
"""tmp: a folder, patch: monkeypatch, printed: what was printed so far."""
CAUSES: dict[str, Callable[[Scene], str]] = {}
"""By words of the one row that quotes the message."""


def causes(words: str) -> Callable[[Callable[[Scene], str]], None]:
    return lambda function: CAUSES.update({words: function})


def refused(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    """What an error of ours says that a call ends in."""
    with pytest.raises(PostTrainError) as caught:
        function(*given, **named)
    return str(caught.value)


def watched(scene: Scene, config: str, step: int = 0) -> Watch:
    """The Watch of a run, at a trainer that has one layer to train and did `step` steps."""
    import torch

    run = RunFolder(scene.tmp / "run")
    run.open(fresh=False)
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=step, max_steps=225, num_input_tokens_seen=0),
        add_callback=lambda _: None,
        model=torch.nn.Linear(2, 2),
        accelerator=SimpleNamespace(optimizer_step_was_skipped=False),
    )
    return Watch(trainer, settings_of(config), run, StopRequest(None))


def finding(findings: list[Finding], subject: str) -> str:
    (actual,) = (each for each in findings if each.subject == subject)
    return " ".join((actual.text, *actual.details, actual.advice))


@causes("training on the CPU")
def _(scene: Scene) -> str:
    settings = settings_of("grpo_demo")
    return check_device(Device("CPU", 0.0, False), settings.model, settings.training)


@causes("has no vLLM")
def _(scene: Scene) -> str:
    scene.patch.chdir(ROOT)
    requested = settings_of("grpo_gsm8k_16gb", "model.fast_inference=always")
    return refused(check_vllm, requested.model)


@causes("has no chat template")
def _(scene: Scene) -> str:
    base = shutil.copytree(DEMO_MODEL, scene.tmp / "base")
    (base / "chat_template.jinja").unlink()
    return refused(pretrained.load_tokenizer, settings_of("grpo_demo", f"model.name={base}").model)


@causes("out of memory in training")
def _(scene: Scene) -> str:
    """What the trainer calls where memory ran out; tests/reliability/test_health.py lets it."""
    watch = watched(scene, "grpo_gsm8k_t4", step=119)
    watch.halve("training", 8)
    stopped = refused(watch.halve, "training", 1)
    return f"{scene.printed()} {stopped}"


@causes("a run uses one")
def _(scene: Scene) -> str:
    row = "NVIDIA L4, 570.86.15, 23034, 4, 8.9"
    tool = scene.tmp / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '0, GPU-1, {row}'\necho '1, GPU-2, {row}'\n")
    tool.chmod(0o755)
    scene.patch.setenv("PATH", str(scene.tmp))
    scene.patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    scene.patch.setenv("WORLD_SIZE", "2")
    launched = refused(dpo.main, demo_command("dpo", scene.tmp / "run", "--dry-run"))
    return finding(look_for_gpu()[1], "GPU") + launched


@causes("the change that training made is small")
def _(scene: Scene) -> str:
    check = at_most("learning_lost", 0.8, MOST_LOST)
    assert not check.passed
    return " ".join(export_words.advice([check.name]))


@causes("needs a C++ compiler")
def _(scene: Scene) -> str:
    scene.patch.setenv("PATH", str(scene.tmp))
    return refused(llama_cpp._build, scene.tmp)


@causes("is a finished run of other settings")
def _(scene: Scene) -> str:
    def facts(rate: float) -> dict[str, Any]:
        requested = settings_of("grpo_gsm8k_16gb", f"training.learning_rate={rate}")
        return {"settings": requested.model_dump(mode="json")}

    write_json(scene.tmp / "manifest.json", {"facts": facts(1e-5)})
    run = RunFolder(scene.tmp / "run")
    run.open(fresh=False)
    run.describe(settings_of("grpo_gsm8k_16gb", "training.learning_rate=1e-5"), {})
    run.write_comparison({})
    changed = settings_of("grpo_gsm8k_16gb", "training.learning_rate=2e-5")
    finished = refused(run.is_done, changed, "auto")
    return f"{finished}\n{refused(check_same_run, scene.tmp, facts(2e-5))}"


@causes("records stay in the run folder")
def _(scene: Scene) -> str:
    scene.patch.delenv("WANDB_API_KEY", raising=False)
    scene.patch.setenv("NETRC", str(scene.tmp / "none"))
    scene.patch.setenv("HF_HUB_OFFLINE", "1")
    return finding(look_at_services(), "W&B")


@causes("nor a dataset in reach")
def _(scene: Scene) -> str:
    import datasets
    from huggingface_hub import constants

    for module in (datasets.config, constants):  # which read the variable at their import
        scene.patch.setattr(module, "HF_HUB_OFFLINE", True)
    dataset = refused(read_rows, Source(path="owner/no_such_data"))
    scene.patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_API_KEY"):
        scene.patch.delenv(name, raising=False)
    return f"{dataset} {finding(look_at_services(), 'hub')}"


@causes("the disk is full")
def _(scene: Scene) -> str:
    """The second as tests/reliability/test_disk_full.py has it of a run on a disk that is full."""
    free = shutil.disk_usage(scene.tmp).free
    return f"{refused(check_disk, scene.tmp, free, 2)} {disk_full_error(scene.tmp)}"


@causes("this is Windows")
def _(scene: Scene) -> str:
    """In Git's bash, by what that calls itself."""
    result = subprocess.run(
        ["bash", ROOT / "run", "doctor"],
        env={**os.environ, "OSTYPE": "msys"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    return result.stderr


# --- the page -----------------------------------------------------------------------------------


def texts_of_the_program() -> set[str]:
    """Every string of the program, with … for each value that is put into it."""
    texts = {(ROOT / "run").read_text(encoding="utf-8")}
    for wing in ("eval", "posttrain", "scripts"):
        for path in (ROOT / wing).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                constants = [p.value if isinstance(p, ast.Constant) else "…" for p in parts]
                texts.add("".join(map(str, constants)))
    return texts


def test_a_row_has_a_cause_and_a_fix() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 3 and all(row), row


@pytest.mark.parametrize("words", list(CAUSES))
def test_a_quoted_message_is_given(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    printed = lambda: capsys.readouterr().out  # noqa: E731
    output = CAUSES[words](Scene(tmp=tmp_path, patch=monkeypatch, printed=printed))
    (seen,) = (row[0] for row in rows() if words in row[0])
    for message in messages(seen):
        assert is_printed(message, output), f"{message}\nis not in\n{output}"
        assert not is_printed(message.translate(str.maketrans("aei", "eia")), output)


def test_every_other_message_is_in_the_program() -> None:
    texts = texts_of_the_program()
    others = [row[0] for row in rows() if not any(words in row[0] for words in CAUSES)]
    for message in (message for seen in others for message in messages(seen)):
        assert any(is_printed(message, text) for text in texts), message
    assert not any(is_printed("a message that nothing prints", text) for text in texts)


@pytest.mark.parametrize(
    ("setting", "config"),
    [
        (word, "dpo_demo" if "loss" in word or "prompt" in word else "grpo_demo")
        for span in re.findall(r"`([^`\n]+)`", prose(text_of(PAGE)))
        if not span.startswith("./run")
        for word in span.split()
        if re.match(r"[a-z]+\.[a-z._]+=", word)
    ],
)
def test_every_setting_with_a_value_is_taken(setting: str, config: str) -> None:
    more = ["training.loss_type=[sigmoid,sft]"] if "loss_weights" in setting else []
    # Two settings that go together: only one of the two precisions is on.
    more += ["training.fp16=false"] if "bf16" in setting else []
    settings_of(config, *more, setting)
