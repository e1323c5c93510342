"""Measure what an export costs and keeps: adapter, merged weights and GGUF on the same problems.

    python bench/export.py outputs/grpo_demo assets/demo_data/problems_test.jsonl 300 WORK

The run folder is copied to the folder WORK, exported there, and each file scored by
scripts/evaluate.py: through transformers, and GGUF through llama.cpp's server. Writes
bench/results/export.json.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("merged_16bit", "gguf:f16", "gguf:q8_0", "gguf:q4_k_m")


def script(name: str, *arguments: object) -> float:
    """Run a script of the project; returns its seconds."""
    started = time.monotonic()
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments]
    subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, check=True)
    return round(time.monotonic() - started, 1)


def main(run: str, problems: str, limit: str, work: str) -> None:
    folder = Path(work) / Path(run).name
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "merged*", "gguf"))
    first = script("export", folder, "--to", ",".join(TARGETS))
    second = script("export", folder, "--to", ",".join(TARGETS))
    exports = json.loads((folder / "export.json").read_text(encoding="utf-8"))["exports"]
    models = {"adapter": "adapter", **{target: exports[target]["path"] for target in TARGETS}}
    strict: dict[str, Any] = {}
    for name, path in models.items():
        scores = Path(work) / "scores" / name.replace(":", "-")
        requested = ["--data", problems, "--limit", limit, "--max-new-tokens", 80]
        script("evaluate", "--model", folder / path, *requested, "--output", scores)
        report = json.loads((scores / "report.json").read_text(encoding="utf-8"))
        strict[name] = report["measures"]["strict"]
    result = {
        "machine": {"processor": platform.machine(), "system": platform.system()},
        "problems": int(limit),
        "seconds": {"export": first, "export_again": second},
        "strict": strict,
        "exports": {
            name: {key: exports[name][key] for key in ("bytes", "seconds", "proven", "checks")}
            for name in TARGETS
        },
    }
    path = ROOT / "bench" / "results" / "export.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, measure in strict.items():
        print(f"{name:14} {measure['value']:.4f} ({round(measure['value'] * measure['n'])} right)")


if __name__ == "__main__":
    main(*sys.argv[1:])
