"""Plain English: words that are not to be used in what people read.

Each entry of AVOID is a pattern with what to write instead. Code blocks and inline code are not
read: a message that a page quotes is the program's. SCOPE lists what is read; docstrings and
messages can be added to it as functions of the same kind.
"""

import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.helpers import ROOT

AVOID = {
    r"told|tells?|said": "prints, shows, lists, has",
    r"ask(?:ed|s)": "requested, requires, sends",
    r"found": "read, measured, detected",
    r"go(?:es|ing)? on|went on": "continues, resumes",
    r"anew|once more": "again",
    r"tak\w+ home|took home|brought": "exported, given",
    r"in words": "name what is written",
    r"of (?:its|their) own": "its, separate",
    r"com(?:es?|ing) to": "is, totals",
    r"otherwise": "differently, else",
    r"whole": "complete",
    r"(?:is|are) no": "is not a, there is no",
    r"by (?:itself|themselves)": "alone, automatically",
}
ALLOWED = {
    "there is no",  # "there is no KL term" is how it is said
    "there are no",
    "whole numbers?",
    "(?:is|are) no longer",
}
QUOTED = ("posttrain/export/texts.py", "eval/judge.py")
"""Files that hold texts for a model to read."""
FIELDS = {"asked", "whole"}
"""Fields of files in a run folder, which keep their names."""
Text = tuple[str, str]
"""Where a text is, and the text."""


def without_code(text: str) -> str:
    """Markdown without fenced blocks, inline code, comments and addresses."""
    text = re.sub(r"^ *```.*?^ *```$", " ", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|<!--.*?-->|\]\([^)]*\)", " ", text, flags=re.DOTALL)


def pages() -> Iterator[Text]:
    for path in (ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield path.name, without_code(path.read_text(encoding="utf-8"))


def notebooks() -> Iterator[Text]:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells, start=1):
            if cell["cell_type"] == "markdown":
                yield f"{path.name}, cell {number}", without_code("".join(cell["source"]))


def comments() -> Iterator[Text]:
    """Comments at the start of a line: the usage that ./run prints, the heads of configs."""
    paths = [ROOT / name for name in ("run", "sky.yaml", "Dockerfile")]
    for path in (*paths, *sorted((ROOT / "configs").glob("*.yaml"))):
        lines = path.read_text(encoding="utf-8").splitlines()
        yield path.name, "\n".join(line for line in lines if line.lstrip().startswith("#"))


def sources() -> Iterator[Text]:
    """Names, comments, docstrings and messages of the product, without fields of files."""
    for folder in ("scripts", "posttrain", "eval", "rewards"):
        for path in sorted({*(ROOT / folder).rglob("*.py")} - {ROOT / name for name in QUOTED}):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                text = re.sub(rf"(?:[\"'.{{]|^ +)(?:{'|'.join(FIELDS)})\b", " ", line)
                yield f"{path.relative_to(ROOT)}:{number}", text.replace("_", " ")


SCOPE: list[Callable[[], Iterator[Text]]] = [pages, notebooks, comments, sources]


def matches(text: str) -> list[str]:
    """The words to avoid in a text, with what to write instead."""
    text = " ".join(text.split())
    for phrase in ALLOWED:
        text = re.sub(rf"\b{phrase}\b", " ", text, flags=re.IGNORECASE)
    return [
        f"{match.group()!r} ({instead})"
        for pattern, instead in AVOID.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, flags=re.IGNORECASE)
    ]


@pytest.mark.parametrize("texts", SCOPE, ids=lambda texts: texts.__name__)
def test_plain_english(texts: Callable[[], Iterator[Text]]) -> None:
    checked = [(where, matches(text)) for where, text in texts()]
    assert checked
    assert not [f"{where}: {', '.join(words)}" for where, words in checked if words]


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("It tells how.", True),
        ("The run goes\non from there.", True),
        ("There is no KL term by default. It is not on, and resumes", False),
        (without_code("`goes on` [a](found.md)"), False),
    ],
)
def test_a_word_to_avoid_is_reported(text: str, reported: bool) -> None:
    assert bool(matches(text)) == reported
