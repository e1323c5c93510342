"""Export at the end of a training run, in a process of its own.

The training process has Unsloth's patches in transformers and peft, and its model in memory; what
is exported has to be what anyone without them will load.
"""

import json
import subprocess
import sys
from pathlib import Path

from scripts.common.config import ROOT
from scripts.common.settings import Export


def after_training(run: Path, settings: Export) -> int:
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity gate."""
    if not settings.to:
        return 0
    section = json.dumps(settings.model_dump(mode="json"))
    print("\nExporting", flush=True)
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), str(run), f"export={section}"]
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    return code if code >= 0 else 128 - code
