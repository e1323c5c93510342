"""README.md, AGENTS.md and docs/*.md as tests read them: commands, blocks, and what they name."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "AGENTS.md", *DOCS]
# A separate test follows the page: test_stages_page.py, test_recipes.py, test_rewards_page.py.
FOLLOWED = {"stages.md", "extending.md", "rewards.md"}
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# What a person types in a pod's terminal around our commands.
NOT_OURS = (
    *("cd ", "hf jobs ", "python:3.12 ", "git clone ", "export HF_HOME", "nohup bash"),
    *("runpodctl ", "' > ", "tail "),
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


def inline_commands(text: str) -> list[str]:
    """The complete commands of ours in inline code: no placeholder in capitals, no bare name."""
    spans = [" ".join(span.split()) for span in re.findall(r"`(\./run [^`]+)`", prose(text))]
    placeholder = re.compile(r"\b[A-Z]{3,}\b|\.\.\.")
    return [span for span in spans if span.count(" ") > 1 and not placeholder.search(span)]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", text)
