"""Every module can be imported, without a warning, on this CPython."""

import subprocess
import sys

from tests.helpers import ROOT

FOLDERS = ("rewards", "eval", "posttrain", "scripts")
# Unsloth first, as in every command that loads a model: it patches the libraries below it.
PROGRAM = """
import importlib, sys, warnings
from posttrain.model import runtime
runtime.start(verbose=False, threads=None)
warnings.resetwarnings()
warnings.filterwarnings("error", module="(rewards|eval|posttrain|scripts)([.]|$)")
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_is_imported() -> None:
    paths = [path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    names = sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)
    assert len(names) > 150
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
