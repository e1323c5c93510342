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
READERS = {"report", "doctor", "export", "chat"}
"""Wings for commands of their own: training writes the run folder that they read."""
MOST_LINES = 10_930
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


def imported(root: Path, module: Path) -> Iterator[tuple[int, Path | str]]:
    """Line and target of each import, wherever it stands: a file of ours, or another's name."""
    for node in ast.walk(ast.parse((root / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, _find(root, alias.name.split(".")) or alias.name
        elif isinstance(node, ast.ImportFrom):
            start = list(module.parts[: len(module.parts) - node.level]) if node.level else []
            parts = [*start, *(node.module or "").split(".")] if node.module else start
            for alias in node.names:
                result = _find(root, [*parts, alias.name]) or _find(root, parts)
                yield node.lineno, result or ".".join(parts)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if isinstance(name, str):
                yield node.lineno, _find(root, name.split(".")) or name


def _find(root: Path, parts: list[str]) -> Path | None:
    path = Path(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (root / candidate).is_file():
            return candidate
    return path if (root / path).is_dir() else None


def faults(root: Path) -> list[str]:
    """Everything in the folders of the house that breaks a rule, one sentence each."""
    allowed = arrows()
    result: list[str] = []
    houses = ("rewards", "eval", LIBRARY, "scripts")
    modules = [
        p.relative_to(root) for house in houses for p in sorted((root / house).rglob("*.py"))
    ]
    for module in modules:
        wing = wing_of(module)
        if not wing:
            if module.name != "__init__.py":
                result.append(f"{module}: a loose module; it belongs into a wing")
        elif wing not in allowed:
            result.append(f"{module}: the wing '{wing}' has no arrows; see ARROWS")
        for line, target in imported(root, module):
            where = f"{module}:{line}"
            if isinstance(target, str):
                library = target.split(".")[0]
                if str(module) != ALONE.get(library, str(module)):
                    result.append(f"{where}: imports {library}, which {ALONE[library]} alone does")
                continue
            other, top = wing_of(target), target.parts[0]
            if top == "tests":
                result.append(f"{where}: imports {target}, a test")
            elif top == "scripts" and target.name != "__init__.py":
                result.append(f"{where}: imports {target}, a script")
            elif top in houses and other not in {wing, "", *allowed.get(wing, set())}:
                result.append(
                    f"{where}: imports {target}, and no arrow goes from {wing} to {other}"
                )
    return result


def reached(root: Path, start: Path) -> set[Path]:
    """Every module of ours that a script imports, over others and inside of functions too."""
    seen: set[Path] = set()
    left = [start]
    while left:
        module = left.pop()
        if module not in seen and (root / module).is_file():
            seen.add(module)
            left += [folder / "__init__.py" for folder in module.parents]
            left += [target for _, target in imported(root, module) if isinstance(target, Path)]
    return seen


def test_the_house() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize("script", ["sft", "dpo", "grpo"])
def test_training_reaches_nothing_that_reads_its_folder(script: str) -> None:
    modules = reached(ROOT, Path("scripts", f"{script}.py"))
    assert not {wing_of(module) for module in modules} & READERS


def test_how_much_there_is_to_read_of_grpo() -> None:
    modules = reached(ROOT, Path("scripts/grpo.py"))
    assert sum(len((ROOT / m).read_text("utf-8").splitlines()) for m in modules) <= MOST_LINES


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house with nothing wrong in it."""
    for path, text in {
        "rewards/__init__.py": "",
        "eval/__init__.py": "import rewards\n",
        "posttrain/__init__.py": "import os\n",
        "posttrain/base/__init__.py": "",
        "posttrain/base/paths.py": "from pathlib import Path\n",
        "posttrain/settings/__init__.py": "from posttrain.base.paths import Path\n",
        "posttrain/data/__init__.py": "",
        "posttrain/data/pairs.py": "import eval\nfrom posttrain import settings\n",
        "posttrain/data/report/__init__.py": "from posttrain.data import pairs\n",
        "posttrain/model/__init__.py": "",
        "posttrain/model/policy.py": "from posttrain.model import runtime\n",
        "posttrain/model/runtime.py": "def load():\n    import unsloth\n",
        "scripts/__init__.py": "",
        "scripts/dpo.py": "from posttrain.model import policy\n",
        "tests/helpers.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


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
def test_what_is_wrong_is_found(house: Path, module: str, text: str, fault: str) -> None:
    assert faults(house) == []
    (house / module).parent.mkdir(exist_ok=True)
    (house / module).write_text(text + "\n")
    results = faults(house)
    assert results and all(each.startswith(module) and fault in each for each in results)


def test_what_a_script_reaches(house: Path) -> None:
    modules = {str(module) for module in reached(house, Path("scripts/dpo.py"))}
    of_model = {f"posttrain/model/{name}.py" for name in ("__init__", "policy", "runtime")}
    assert modules == {
        *("scripts/__init__.py", "scripts/dpo.py", "posttrain/__init__.py"),
        *of_model,
    }
    (house / "posttrain/model/policy.py").write_text("def f():\n    from .. import data\n")
    assert Path("posttrain/data/__init__.py") in reached(house, Path("scripts/dpo.py"))
