"""Export at the end of a training run, in a process of its own.

The training process has Unsloth's patches in transformers and peft, and its model in memory; what
is exported has to be what anyone without them will load.
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
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity gate.

    The main process does; what others keep is in a folder that ends with them.
    """
    if not settings.to or not is_main():
        return 0
    if "torch" in sys.modules:  # it keeps the memory of the largest step, which the gate needs
        free_memory()
    section = json.dumps(settings.model_dump(mode="json"))
    print("\nExporting", flush=True)
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), str(run), f"export={section}"]
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    return code if code >= 0 else 128 - code
