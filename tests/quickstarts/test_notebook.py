"""The Colab notebook: clean, short, and run from its first cell to its last."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT, copy_project

NOTEBOOK = ROOT / "notebooks" / "quickstart_colab.ipynb"
COMMAND = re.compile(r"run\(\"(\w+)\"")


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_clean_and_short(notebook: nbformat.NotebookNode) -> None:
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and "code, code, code" not in ", ".join(kinds)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 22
            ast.parse(cell.source)
    assert notebook.metadata.accelerator == "GPU"
    assert 'REPOSITORY = ""' in "".join(cell.source for cell in notebook.cells)


def test_what_it_names_is_there(notebook: nbformat.NotebookNode) -> None:
    text = "\n".join(cell.source for cell in notebook.cells)
    for command in COMMAND.findall(text):
        if command not in ("demo", "python"):
            assert (ROOT / "scripts" / f"{command}.py").exists(), command
    for config in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / config).exists(), config
    assert "configs/grpo_gsm8k_t4.yaml" in text


@pytest.mark.long
@pytest.mark.timeout(1200)
# The kernel's own libraries announce changes of paths and event loops to come.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::ResourceWarning")
@pytest.mark.skipif(
    not (ROOT / ".venv" / "installed.lock").exists(), reason="not installed by ./run"
)
def test_runs_from_top_to_bottom(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the project with no git history, with demo settings and few steps."""
    copy = copy_project(tmp_path / "project")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no nvidia-smi: the notebook takes the demo
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("POSTTRAIN_QUICK", "training.max_steps=2 evaluation.limit=8")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as on Colab
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(copy / "notebooks")}}
    )
    client.execute()
    shown = ["".join(o.get("text", "") for o in c.get("outputs", ())) for c in notebook.cells]
    assert any("No GPU" in text for text in shown)
    assert any("Both demos" in text and "strict accuracy" in text for text in shown)
    assert any("is a finished run" in text for text in shown)  # the demo's, taken up again
    run = copy / "outputs" / "grpo_demo"
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert (run / "gguf" / "grpo_demo-q8_0.gguf").exists()
