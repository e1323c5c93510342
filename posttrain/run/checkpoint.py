"""Checkpoints that are whole or absent, proven before they are used.

The trainer writes into a staging folder. When it is done, every file is synced, a manifest with
sizes and SHA-256 is written last, and the folder is renamed to `step-NNNNNN`: a crash at any moment
leaves the earlier checkpoints as they were. On resume a checkpoint counts only if every file is the
one that the manifest names.
"""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from posttrain.base.errors import CheckpointError, ConfigError
from posttrain.base.files import sync_folder, write_json

MANIFEST = "manifest.json"
# A pickle, which nothing here reads, and an empty template of a model card.
NOT_KEPT = ("training_args.bin", "README.md")


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staging = folder / ".staging"

    def steps(self) -> list[Path]:
        """Finished checkpoints, oldest first, verified or not."""
        return sorted(p for p in self.folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir())

    def publish(
        self,
        written: Path,
        step: int,
        facts: dict[str, Any],
        keep: int,
        score: dict[str, Any] | None = None,
    ) -> Path:
        """Seal what the trainer wrote and give it its name; then delete all but the newest `keep`
        and the best.

        `facts` say which run this is a checkpoint of; they are compared on resume. `score` is what
        Score.take() gave. The earlier checkpoints are deleted only once the new one has been read
        back and verified.

        Raises:
            CheckpointError: what is on the disk is not what was written.
        """
        for name in NOT_KEPT:
            (written / name).unlink(missing_ok=True)
        files = {}
        for path in sorted(p for p in written.rglob("*") if p.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(written))] = _identity(path)
        write_json(
            written / MANIFEST, {"step": step, "score": score, "files": files, "facts": facts}
        )
        sync_folder(written)
        target = self.folder / f"step-{step:06d}"
        if target.exists():  # a resumed run writes the same step again
            shutil.rmtree(target)
        os.rename(written, target)
        sync_folder(self.folder)
        problems = verify(target)
        if problems:
            raise CheckpointError(f"{target} did not survive being written: {problems[0]}")
        best = self.best()
        for old in self.steps()[:-keep]:
            if old != best:
                shutil.rmtree(old)
        return target

    def set_aside_after(self, step: int) -> None:
        """Set checkpoints of later steps aside as `step-NNNNNN.later`, where `--resume PATH` went
        back to an earlier one: they are of a course that is not followed any more, and would be
        taken for the newest."""
        for path in self.steps():
            if int(path.name[5:]) > step:
                aside = path.with_name(f"{path.name}.later")
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)
                print(f"checkpoint {path.name} is of a later step; set aside as {aside.name}")

    def best(self) -> Path | None:
        """The checkpoint with the highest score in its manifest, the newer of two equal ones."""
        scores = {path: value for path in self.steps() if (value := _score(path)) is not None}
        return max(scores, key=lambda path: (scores[path], int(path.name[5:])), default=None)

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies, None if there is none at all.

        A damaged one is named and set aside as `step-NNNNNN.damaged`; what was being written when
        a run was killed is removed.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        if self.staging.exists():
            shutil.rmtree(self.staging)
        found = self.steps()
        for path in reversed(found):
            problems = verify(path)
            if not problems:
                return path
            aside = path.with_name(f"{path.name}.damaged")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
            print(f"checkpoint {path.name} is damaged ({problems[0]}); set aside as {aside.name}")
        if found:
            raise CheckpointError(
                f"{self.folder}: all {len(found)} checkpoints are damaged and were set aside. "
                '"--resume never" starts over (the old folder is moved aside)'
            )
        return None


def _score(path: Path) -> float | None:
    try:
        value = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["score"]["value"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of an earlier version, or damaged, which is found on resume
    return float(value) if isinstance(value, int | float) else None


class Score:
    """The mean of a metric of the training batches since the last checkpoint.

    It is noisy and says nothing of held-out data, but it costs nothing: enough to keep, beside the
    newest checkpoints, one from before a run went wrong.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._values: list[float] = []

    def add(self, logs: dict[str, Any]) -> None:
        """Take note of what the trainer logged."""
        if self.metric in logs and math.isfinite(value := float(logs[self.metric])):
            self._values.append(value)

    def take(self) -> dict[str, Any] | None:
        """`{"metric", "value", "logged"}` for a manifest, None if nothing was logged; starts anew.

        `logged` is how many values the mean is of.
        """
        values, self._values = self._values, []
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        return {"metric": self.metric, "value": mean, "logged": len(values)}


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty if every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = dict(manifest["files"])
        step = int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read: {error}"]
    problems = []
    if path.name != f"step-{step:06d}":
        problems.append(f"{MANIFEST} is of step {step}")
    present = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    problems += [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} does not belong there" for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        if _identity(path / name) != expected[name]:
            problems.append(f"{name} is not what was written")
    return problems


def check_same_run(path: Path, facts: dict[str, Any]) -> None:
    """Check that a checkpoint is of a run with the same settings, data and versions.

    Raises:
        ConfigError: it is not, with every difference.
    """
    earlier = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["facts"]
    changed = differences("", earlier, facts)
    if changed:
        raise ConfigError(
            f"{path} is of another run:\n         "
            + "\n         ".join(changed)
            + '\n       "--resume-anyway" goes on all the same, "--resume never" starts over (the '
            "old folder is moved aside)"
        )


def differences(where: str, earlier: Any, now: Any) -> list[str]:
    """`key.path was X, now Y` for every value in which two nested mappings differ."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted(earlier.keys() | now.keys())
        inner = f"{where}." if where else ""
        return [d for k in keys for d in differences(f"{inner}{k}", earlier.get(k), now.get(k))]
    return [] if earlier == now else [f"{where} was {earlier!r}, now {now!r}"]


def _identity(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
