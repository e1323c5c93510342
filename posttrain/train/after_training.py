"""What a run calls once it has trained: commands that read its folder, as a person would.

Each is a separate process, so that neither a fault in it nor a kill costs the run anything.
"""

import json
import sys
from pathlib import Path

from posttrain.base.paths import run_command, shown
from posttrain.base.process import run_script
from posttrain.model.device import free_memory
from posttrain.settings import Export


def report(run: Path) -> None:
    """Write card, plots and page of a run, and print its table."""
    if code := run_script("report", str(run)):
        again = f"{run_command()} report {shown(run)}"
        print(f"note: the report is not complete (exit code {code}); {again} makes it")


def export(run: Path, settings: Export) -> int:
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity gate.

    This process has Unsloth's patches in transformers and peft; an export has to load without them.
    """
    if not settings.to:
        return 0
    if "torch" in sys.modules:  # it keeps the memory of the largest step, which the gate needs
        free_memory()
    print("\nExporting")
    return run_script("export", str(run), f"export={json.dumps(settings.model_dump(mode='json'))}")
