"""The notebook and the outputs that it keeps.

    ./run python -m tests.quickstarts.notebook

runs it in a copy of the project and writes the outputs into the file. It takes about ten minutes
on two idle CPU cores, and needs SmolLM2-135M-Instruct from the hub or in the hub's cache.
"""

import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.helpers import ROOT, copy_project

PATH = ROOT / "notebooks" / "quickstart_colab.ipynb"
# Cells without kept output: what the machine can run, and the run that is meant for a GPU.
NOT_KEPT = ('"doctor"', "run(METHOD")
# What only some machines print: progress bars, a note on busy cores, a download.
SLOW = re.compile(r"^(?:\w[\w ]*: +\d+%\||note: other programs|Fetching llama).*\n", re.MULTILINE)
SAMPLE = re.compile(r"^.* replies changed.*?(?=^measure)", re.MULTILINE | re.DOTALL)


def load() -> nbformat.NotebookNode:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: nbformat.NotebookNode, project: Path) -> list[str]:
    """Run all cells in a copy of the project; returns what each printed."""
    kernel = {"metadata": {"path": str(project / "notebooks")}}
    NotebookClient(notebook, timeout=1800, resources=kernel).execute()
    return printed(notebook)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    return ["".join(o.get("text", "") for o in c.get("outputs", ())) for c in notebook.cells]


def headings(text: str) -> list[str]:
    """What each line starts with, digits masked; without replies, which differ by machine."""
    masked = re.sub(r"\d[\d,.]*", "#", SAMPLE.sub("", SLOW.sub("", text)))
    starts = (re.split(r"  |: |\[", line.strip())[0] for line in masked.splitlines())
    return list(dict.fromkeys(start for start in starts if start))


def main() -> None:
    os.environ["PATH"] = "/usr/bin:/bin"  # no nvidia-smi
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder) / "project")
        notebook = load()
        texts = execute(notebook, project)
    for cell, text in zip(notebook.cells, texts, strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = "" if any(code in cell.source for code in NOT_KEPT) else SLOW.sub("", text)
            for path, shown in ((project, "/content/posttrain"), (Path.home(), "~")):
                kept = kept.replace(str(path), shown)
            cell.outputs = [nbformat.v4.new_output("stream", text=kept)] if kept else []
            cell.execution_count = None
    PATH.write_text(nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
