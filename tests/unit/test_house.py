"""The house stays as it is built: imports go one way, and every module stands in a wing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

# Each wing may import what its arrows lead to, at once or over others; its neighbours it may not.
ARROWS = """
scripts -> chat data/report demo doctor export train
chat -> scoring
doctor -> model
demo -> eval
export -> report scoring
train -> model
scoring -> model
model -> data run
data/report -> data
data -> eval settings
run -> eval settings
report -> run
settings -> base
eval -> rewards
"""
LIBRARY = "posttrain"
HOUSES = ("rewards", "eval", LIBRARY, "scripts")
READERS = {"report", "doctor", "export", "chat"}
"""Wings for commands of their own: training writes the run folder that they read."""
MOST_LINES = 10_580
"""Lines that scripts/grpo.py and all it imports may have together; 9,000 is the aim."""
# What one module alone may import, for the others to use.
ALONE = {
    "unsloth": "posttrain/model/runtime.py",  # it has to be imported before whatever it patches
    "tqdm": "posttrain/base/progress.py",  # it moves the cursor in pipes and log files
}


def arrows(text: str = ARROWS) -> dict[str, set[str]]:
    """All that each wing may import: where its arrows lead, and where theirs do.

    A circle in the table is a RecursionError, so no circle of imports is allowed either.
    """
    direct: dict[str, set[str]] = {}
    for line in text.strip().splitlines():
        wing, targets = line.split(" -> ")
        direct.setdefault(wing, set()).update(targets.split())
        for target in targets.split():
            direct.setdefault(target, set())

    def reached(wing: str) -> set[str]:
        return direct[wing].union(*map(reached, direct[wing]))

    return {wing: reached(wing) for wing in direct}


def wing_of(module: Path) -> str:
    """`data/report` of posttrain/data/report/text.py; `eval`, `rewards` or `scripts` of others."""
    folders = module.parts[:-1]
    return "/".join(folders[1:]) if folders[0] == LIBRARY else folders[0]


def source(module: Path) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def imported(module: Path, text: str) -> Iterator[tuple[int, Path | str]]:
    """Line and target of each import, wherever it stands: a file of ours, or another's name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, _find(alias.name.split(".")) or alias.name
        elif isinstance(node, ast.ImportFrom):
            start = list(module.parts[: len(module.parts) - node.level]) if node.level else []
            parts = [*start, *(node.module or "").split(".")] if node.module else start
            for alias in node.names:
                result = _find([*parts, alias.name]) or _find(parts)
                yield node.lineno, result or ".".join(parts)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(name, str):
                yield node.lineno, _find(name.split(".")) or name


def _find(parts: list[str]) -> Path | None:
    path = Path(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return path if (ROOT / path).is_dir() else None


def faults(module: Path, text: str) -> Iterator[str]:
    """Everything in a module of the house that breaks a rule, one sentence each."""
    allowed, wing = arrows(), wing_of(module)
    if not wing:
        if module.name != "__init__.py":
            yield f"{module}: a loose module; it belongs into a wing"
    elif wing not in allowed:
        yield f"{module}: the wing '{wing}' has no arrows; see ARROWS"
    for line, target in imported(module, text):
        where = f"{module}:{line}"
        if isinstance(target, str):
            library = target.split(".")[0]
            if str(module) != ALONE.get(library, str(module)):
                yield f"{where}: imports {library}, which {ALONE[library]} alone does"
            continue
        other, top = wing_of(target), target.parts[0]
        if top == "tests":
            yield f"{where}: imports {target}, a test"
        elif top == "scripts" and target.name != "__init__.py":
            yield f"{where}: imports {target}, a script"
        elif top in HOUSES and other not in {wing, "", *allowed.get(wing, set())}:
            yield f"{where}: imports {target}, and no arrow goes from {wing} to {other}"


def reached(start: Path) -> set[Path]:
    """Every module of ours that a script imports, over others and inside of functions too."""
    seen: set[Path] = set()
    left = [start]
    while left:
        module = left.pop()
        if module not in seen and (ROOT / module).is_file():
            seen.add(module)
            left += [folder / "__init__.py" for folder in module.parents]
            targets = imported(module, source(module))
            left += [target for _, target in targets if isinstance(target, Path)]
    return seen


def test_the_house() -> None:
    paths = [path for house in HOUSES for path in sorted((ROOT / house).rglob("*.py"))]
    modules = [path.relative_to(ROOT) for path in paths]
    assert len(modules) > 150
    assert [fault for module in modules for fault in faults(module, source(module))] == []


@pytest.mark.parametrize("script", ["sft", "dpo", "grpo"])
def test_training_reaches_nothing_that_reads_its_folder(script: str) -> None:
    modules = reached(Path("scripts", f"{script}.py"))
    assert {Path(LIBRARY, "__init__.py"), Path(ALONE["unsloth"])} < modules
    assert not {wing_of(module) for module in modules} & READERS


def test_how_much_there_is_to_read_of_grpo() -> None:
    modules = reached(Path("scripts/grpo.py"))
    assert sum(len(source(module).splitlines()) for module in modules) <= MOST_LINES


@pytest.mark.parametrize(
    ("module", "text", "fault"),
    [
        ("posttrain/base/new.py", "from posttrain.model import policy", "from base to model"),
        ("posttrain/base/new.py", "import posttrain.model.policy", "from base to model"),
        ("posttrain/base/new.py", "from ..model.policy import load", "from base to model"),
        ("posttrain/base/new.py", "from .. import model", "from base to model"),
        ("posttrain/base/new.py", "def f():\n    import eval", "from base to eval"),
        ("posttrain/data/new.py", "from posttrain.data import report", "from data to data/report"),
        ("rewards/new.py", "from posttrain.base.paths import Path", "from rewards to base"),
        ("posttrain/model/new.py", "from scripts import dpo", "scripts/dpo.py, a script"),
        ("scripts/new.py", "from scripts.dpo import main", "scripts/dpo.py, a script"),
        ("posttrain/model/new.py", "from tests import helpers", "tests/helpers.py, a test"),
        ("posttrain/model/new.py", "from unsloth import x", "imports unsloth"),
        ("scripts/new.py", "importlib.import_module('unsloth.models')", "imports unsloth"),
        ("posttrain/new.py", "", "posttrain/new.py: a loose module"),
        ("posttrain/attic/new.py", "", "the wing 'attic' has no arrows"),
    ],
)
def test_what_is_wrong_is_found(module: str, text: str, fault: str) -> None:
    results = list(faults(Path(module), text))
    assert results and all(each.startswith(module) and fault in each for each in results)
