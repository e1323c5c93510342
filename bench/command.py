"""What benchmarks have in common: a command line with --output, and their result as JSON."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posttrain.base.files import write_text


def parser(story: str | None) -> argparse.ArgumentParser:
    """A parser with --output; --help shows `story` as it is written."""
    result = argparse.ArgumentParser(
        description=story, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--output", type=Path, help="where to write the JSON result")
    return result


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """What a result was measured on, and with which versions."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def finish(result: dict[str, Any], output: Path | None) -> int:
    """Print a result and write it to `output`; returns the exit code."""
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text + "\n")
    return 0
