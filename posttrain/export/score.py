"""Score exported files on the held-out rows of their run, paired with the adapter's answers.

    python -m posttrain.export.score RUN BASE TARGET...

In a separate process: files are proven without Unsloth, and scored with it, as the adapter was and
as scripts/evaluate.py does. Answers are appended to RUN/eval/exports/TARGET as they are generated.
Results go into export.json, as the `score` (run/results.py, FileScore) of the target's entry, and
of `adapter_16bit`: the adapter of a 4-bit policy on the 16-bit base weights, of which exports are
made.
"""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.files import model_fingerprint, read_object, write_json
from posttrain.base.lock import hold
from posttrain.base.paths import ROOT
from posttrain.base.process import run_main, share_the_processor
from posttrain.export.score_file import File, score_file
from posttrain.report import export_scores
from posttrain.run.record import read_run
from posttrain.run.room import MERGED, in_order
from posttrain.scoring.answers import EvaluatedModel, precision, weights_fingerprint
from posttrain.settings import Evaluation, Export
from posttrain.settings.command import SETTINGS, check_settings
from posttrain.settings.strict_yaml import read_yaml

ADAPTER_16BIT = "adapter_16bit"


def check(run: Path) -> None:
    """Check that there are answers of the adapter to compare with; raises ConfigError if not."""
    needed = ("config.yaml", "eval/after.jsonl", "eval/comparison.json")
    config = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    method = config.get("method")
    if missing := next((path for path in needed if not (run / path).is_file()), None):
        reason = f"it is not a finished run folder (there is no {missing})"
    elif method == "dpo" and not config["evaluation"]["replies"]:
        reason = "it was trained with evaluation.replies=0"
    elif method == "sft" and not config["data"].get("problems"):
        reason = "it was trained without data.problems"
    else:
        return
    raise ConfigError(
        f"--score (export.score): {run}: {reason}, so there are no answers of its adapter to "
        "compare files with; leave it out, or score a file with ./run evaluate"
    )


def in_a_process(run: Path, base: Path, settings: Export) -> int:
    """Score what `settings.to` names and was made; returns the exit code."""
    targets = [t for t in in_order(settings.to) if t != "ollama"]  # it runs the GGUF file
    if MERGED not in settings.to:
        targets.remove(MERGED)
    command = [sys.executable, "-m", "posttrain.export.score", str(run), str(base), *targets]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    print("\nScoring the files on the held-out rows", flush=True)
    environment = {**os.environ, "PYTHONPATH": path}
    code = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode
    return code if code >= 0 else 128 - code


def main() -> int:
    """Score every target that was made; returns the exit code."""
    run, base, targets = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    share_the_processor()
    lease = hold(run / ".export.lock", run, "another export is writing there")
    config = read_yaml(run / "config.yaml")
    record = read_object(run / "export.json")
    made = record["exports"]
    entries = {t: made[t] for t in targets if t in made and (run / made[t]["path"]).exists()}
    method = config.get("method", "grpo")
    settings: Any = check_settings(SETTINGS[method], config, str(run / "config.yaml"))
    if settings.model.load_in_4bit:
        entries = {ADAPTER_16BIT: record.setdefault(ADAPTER_16BIT, {}), **entries}
    for name, entry in entries.items():
        print(f"\n{name}", flush=True)
        speed, score = score_file(_file(run, base, name, entry, settings), settings)
        before = entry.get("score", {}).get("tokens_per_second")
        speed = before if speed is None else round(speed, 1)
        entry["score"] = asdict(replace(score, tokens_per_second=speed))
        write_json(run / "export.json", record)
    lease.release()
    print(f"\n{export_scores.text(read_run(run))}")
    return 0


def _file(run: Path, base: Path, name: str, entry: dict[str, Any], settings: Any) -> File:
    on_base = name == ADAPTER_16BIT
    path = str(run / ("adapter" if on_base else entry["path"]))
    in_16_bits = {"dtype": settings.model.dtype, "load_in_4bit": False}
    model = EvaluatedModel(
        path,
        Evaluation(**settings.evaluation.decoding),
        settings.prompt,
        in_16_bits if on_base else precision(path),
        seed=settings.training.seed,
        base=str(base) if on_base else None,
    )
    weights = weights_fingerprint(path)
    if on_base:
        weights = f"{weights} on {model_fingerprint(base)}"
    return File(run, model, weights, run / "eval" / "exports" / name.replace(":", "-"))


if __name__ == "__main__":
    run_main(main)
