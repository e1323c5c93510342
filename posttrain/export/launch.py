"""Export at the end of a training run, in a process of its own.

The training process holds a model in memory, and Unsloth has patched its transformers and peft. An
export has to be checked as users without Unsloth will load it.
"""

import json
import subprocess
import sys
from pathlib import Path

from posttrain.base.distributed import is_main
from posttrain.base.paths import ROOT
from posttrain.settings import Export
from posttrain.train.guard import free_memory


def after_training(run: Path, settings: Export) -> int:
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity check.

    Only the main process exports: the run folders of the others are temporary.
    """
    if not settings.to or not is_main():
        return 0
    if "torch" in sys.modules:  # torch keeps the memory of the largest step, which the check needs
        free_memory()
    section = json.dumps(settings.model_dump(mode="json"))
    print("\nExporting", flush=True)
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), str(run), f"export={section}"]
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    return code if code >= 0 else 128 - code
