"""README.md and docs/*.md as tests read them: commands, blocks, and what they name."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = "## Recipes"  # a separate test follows what is below it
FOLLOWED = {"stages.md"}  # a separate test follows each command of the page, in order
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# What a person types in a pod's terminal around our commands.
NOT_OURS = (
    "cd ",
    "hf jobs ",
    "python:3.12 ",
    "git clone ",
    "export HF_HOME",
    "nohup bash",
    "runpodctl ",
    "' > ",
    "tail ",
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language, without the indentation of the list they stand in."""
    return [textwrap.dedent(body) for kind, body in BLOCK.findall(text) if kind == language]


def commands(text: str) -> Iterator[str]:
    """Every command of ours in the bash blocks of a page, without the comment behind it."""
    for block in blocks(text, "bash"):
        for line in block.splitlines():
            command = re.split(r"\s{2,}#", line)[0].strip()
            if command and not command.startswith(NOT_OURS):
                yield command


def without_recipes(page: Path) -> str:
    return "" if page.name in FOLLOWED else text_of(page).partition(RECIPES)[0]


def recipes(page: Path = README) -> str:
    return text_of(page).split(RECIPES)[1]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", text)
