"""The notebook: clean, short, and run from its first cell to its last, twice."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from posttrain.settings.command import SETTINGS, load_settings
from tests.helpers import ROOT, Capsys, copy_project
from tests.quickstarts.notebook import NOT_KEPT, execute, headings, load, printed

COMMAND = re.compile(r"run\(\"(\w+)\"")
# What a machine of Colab or Kaggle has, as far as the notebook asks for it.
COLAB = """
class SecretNotFoundError(Exception):
    pass

class drive:
    def mount(folder): print("mounted", folder)

class userdata:
    def get(name):
        if name != "WANDB_API_KEY": raise SecretNotFoundError(name)
        return "from Colab's Secrets"

class files:
    def download(path): print("downloads", path)
"""
KAGGLE = """
class UserSecretsClient:
    def get_secret(self, name):
        if name != "HF_TOKEN": raise ConnectionError(name)
        return "from Kaggle's Secrets"
"""


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return load()


def test_clean_and_short(notebook: nbformat.NotebookNode) -> None:
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and "code, code, code" not in ", ".join(kinds)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 22
            ast.parse(cell.source)
    output = "".join(printed(notebook))
    assert "Both demos took" in output and "SmolLM2" in output and len(output) < 20_000
    assert set(re.findall(r"(?<![\w.~:/<])/\w+", output)) <= {"/content"}  # a path of no machine
    assert not re.search(r"\x1b|\r", output)
    assert not any(c.outputs for c in notebook.cells for code in NOT_KEPT if code in c.source)
    assert notebook.metadata.accelerator == "GPU"
    assert 'REPOSITORY = ""' in "".join(cell.source for cell in notebook.cells)


def cell(notebook: nbformat.NotebookNode, text: str) -> str:
    """The source of the one code cell that holds a text."""
    (result,) = (c.source for c in notebook.cells if c.cell_type == "code" and text in c.source)
    return str(result)


@pytest.mark.parametrize("method", ["grpo", "dpo"])
@pytest.mark.parametrize("size", ["0.5B", "1.5B"])
@pytest.mark.parametrize("card", ["none", "T4", "L4"])
def test_every_choice_is_a_config_that_fits(
    notebook: nbformat.NotebookNode, method: str, size: str, card: str
) -> None:
    """As ./run would take it, and with bfloat16 only where the card has it."""
    requested: list[list[str]] = []
    names = {
        "METHOD": method,
        "SIZE": size,
        "STEPS": 20,
        "PROBLEMS": 300,
        "RUNS": Path("runs"),
        "GPU": card != "none",
        "BFLOAT16": card == "L4",
        "run": lambda *words: requested.append([str(word) for word in words]),
    }
    exec(cell(notebook, "run(METHOD"), names)
    (command, _, config, _, folder, *more) = requested[0]
    assert command == method
    settings = load_settings(SETTINGS[method], ROOT / config, more).model_dump()
    assert settings["training"]["max_steps"] == 20 and settings["evaluation"]["limit"] == 300
    assert folder == f"runs/{Path(config).stem}-20_steps-300_scored"
    if card == "none":
        assert config == f"configs/{method}_demo.yaml"
        return
    assert size in settings["model"]["name"]
    used = {settings["model"]["dtype"] == "bfloat16", settings["training"]["bf16"]}
    assert used <= ({False} if card == "T4" else {True, False})
    assert settings["training"]["fp16"] is (card == "T4")


@pytest.mark.parametrize(
    ("output", "code", "gpu", "bfloat16"),
    [
        ("NVIDIA L4, 23034 MiB, 8.9", 0, True, True),
        ("Tesla T4, 15360 MiB, 7.5", 0, True, False),
        ("A card, 15360 MiB, [N/A]", 0, True, False),
        ("NVIDIA-SMI has failed because it could not communicate with the driver", 9, False, False),
        (None, 127, False, False),
    ],
)
def test_the_card(
    notebook: nbformat.NotebookNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capsys,
    output: str | None,
    code: int,
    gpu: bool,
    bfloat16: bool,
) -> None:
    if output is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    names: dict[str, object] = {}
    exec(cell(notebook, "nvidia-smi"), names)
    assert (names["GPU"], names["BFLOAT16"]) == (gpu, bfloat16)
    shown = capsys.readouterr().out
    assert (output or "No GPU") in shown and ("No GPU" in shown) is not gpu


def test_secrets_of_both_places(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in ("google/colab", COLAB), ("kaggle_secrets", KAGGLE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(os.environ, "HF_TOKEN", "the environment's own")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    source = cell(notebook, "def secret(")
    exec(source, {"os": os, "KAGGLE": False})
    assert os.environ["WANDB_API_KEY"] == "from Colab's Secrets"
    assert os.environ["HF_TOKEN"] == "the environment's own"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("WANDB_API_KEY")
    exec(source, {"os": os, "KAGGLE": True})
    assert os.environ["HF_TOKEN"] == "from Kaggle's Secrets" and "WANDB_API_KEY" not in os.environ


def test_the_project_is_cloned_from_the_remote_of_a_checkout_that_cannot_run(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout on Drive, where no file may be executed: its remote is the address."""
    origin = tmp_path / "origin"
    (origin / "configs").mkdir(parents=True)
    (origin / "configs" / "a.yaml").write_text("")
    (origin / "run").write_text("")
    (origin / "run").chmod(0o755)
    ours = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*ours, "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", origin, *words], check=True)
    drive = tmp_path / "drive"
    subprocess.run(["git", "clone", "-q", origin, drive], check=True)
    (drive / "run").chmod(0o644)
    monkeypatch.chdir(drive)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = cell(notebook, "remote.origin.url").replace("/content", str(tmp_path / "none"))
    exec(source, {"subprocess": subprocess, "REPOSITORY": ""})
    assert Path.cwd() == tmp_path / "home" / "posttrain" and (Path.cwd() / "run").is_file()
    exec(source, {"subprocess": subprocess, "REPOSITORY": ""})  # the cell again
    assert Path.cwd() == tmp_path / "home" / "posttrain"
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "home")
    with pytest.raises(RuntimeError, match="Set REPOSITORY"):
        exec(source, {"subprocess": subprocess, "REPOSITORY": ""})


def test_where_runs_are_kept(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "colab.py").write_text(COLAB, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = cell(notebook, "drive.mount").replace("/kaggle", f"{tmp_path}/kaggle")
    source = source.replace("/content", f"{tmp_path}/content")
    for kaggle, drive, expected in (
        (False, False, "outputs"),
        (True, False, "kaggle/working/runs"),
        (False, True, "content/drive/MyDrive/posttrain"),
    ):
        names = {"Path": Path, "KAGGLE": kaggle, "USE_DRIVE": drive}
        exec(source, names)
        assert Path(str(names["RUNS"])).resolve() == tmp_path / expected
        assert (tmp_path / expected).is_dir()


def test_what_it_names_is_there(notebook: nbformat.NotebookNode) -> None:
    text = "\n".join(cell.source for cell in notebook.cells)
    assert {"demo", "doctor", "report", "export", "chat"} <= set(COMMAND.findall(text))
    for command in COMMAND.findall(text):
        if command != "demo":
            assert (ROOT / "scripts" / f"{command}.py").exists(), command


@pytest.mark.long
@pytest.mark.timeout(1800)
# The kernel's own libraries announce changes of paths and event loops to come.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::ResourceWarning")
@pytest.mark.skipif(
    not (ROOT / ".venv" / "installed.lock").exists(), reason="not installed by ./run"
)
def test_runs_from_top_to_bottom_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, on Drive, the demo model for SmolLM2. Each cell prints what its kept output
    shows, figures and replies apart; the second time nothing is trained."""
    copy = copy_project(tmp_path / "project")
    (tmp_path / "modules" / "google").mkdir(parents=True)
    (tmp_path / "modules" / "google" / "colab.py").write_text(COLAB, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))  # the kernel's own, as on Colab
    drive = tmp_path / "drive"
    drive.mkdir()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no nvidia-smi
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as on Colab
    runs = str(drive / "posttrain")
    replaced = {
        "USE_DRIVE = False": "USE_DRIVE = True",
        "/content/drive/MyDrive": str(drive),
        "HuggingFaceTB/SmolLM2-135M-Instruct": "assets/demo_model",
    }

    def run_all() -> list[str]:
        notebook = load()
        for cell in notebook.cells:
            for old, new in replaced.items():
                cell.source = cell.source.replace(old, new)
        return [text.replace(runs, "outputs") for text in execute(notebook, copy)]

    first = run_all()
    for kept, text in zip(printed(load()), first, strict=True):
        for old, new in {**replaced, "/content/posttrain/outputs": "outputs"}.items():
            kept = kept.replace(old, new)
        kept = kept.replace("/content/posttrain", str(copy))
        missing = set(headings(kept)) - set(headings(text))
        assert not missing, f"./run python -m tests.quickstarts.notebook keeps new outputs: {text}"
    run = drive / "posttrain" / "grpo_demo-20_steps-300_scored"
    assert (run / "gguf" / f"{run.name}-q8_0.gguf").exists()
    assert first[-1].rstrip().splitlines()[-1], "the reply after training"
    metrics = (run / "metrics.jsonl").read_bytes()
    assert "".join(run_all()).count("is a finished run") == 4  # demos, SmolLM2 and the run
    assert (run / "metrics.jsonl").read_bytes() == metrics
