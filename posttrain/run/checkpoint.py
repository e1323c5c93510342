"""Write checkpoints completely or not at all, and verify them before use.

The trainer writes into a staging folder. Then every file is synced, a manifest with sizes and
SHA-256 is written, and the folder is renamed to `step-NNNNNN`. A crash at any moment leaves the
earlier checkpoints as they were. A resume uses a checkpoint only if every file matches the
manifest.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.base.errors import CheckpointError, ConfigError
from posttrain.base.files import follow_umask, sha256, sync_folder, write_json
from posttrain.settings.section import without_removed

MANIFEST = "manifest.json"
# A pickle that nothing here reads, and an empty model card.
NOT_KEPT = ("training_args.bin", "README.md")
LENGTH = ("training.max_steps", "training.num_train_epochs", "run.patience")
"""The settings that say how long is trained."""


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staging = folder / ".staging"
        self.values: Mapping[int, float] | None = None
        """Validation by step, where there is any: the best is then chosen by it alone."""

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
        """Make a checkpoint of the folder that the trainer wrote, then delete old checkpoints.

        `facts` identify the run; a resume compares them. Of the newest checkpoints `keep` stay, in
        addition to the best one by `score`, which Score.take() returned; the others are deleted
        once the new one was read back. CheckpointError if that is not what was written.
        """
        for name in NOT_KEPT:
            (written / name).unlink(missing_ok=True)
        files = {}
        for path in sorted(p for p in written.rglob("*") if p.is_file()):
            follow_umask(path)
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
        if problem := verify(target):
            raise CheckpointError(f"{target} did not survive being written: {problem}")
        best = self.best()
        for old in self.steps()[:-keep]:
            if old != best:
                shutil.rmtree(old)
        return target

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints of later steps to `step-NNNNNN.later`: after `--resume PATH` they are
        no longer part of the run, and must not be taken for the newest."""
        for path in self.steps():
            if int(path.name[5:]) > step:
                _set_aside(path, "later", "is of a later step")

    def best(self) -> Path | None:
        """The checkpoint with the highest score, the newer one if two are equal."""
        scores = {path: value for path in self.steps() if (value := self._score(path)) is not None}
        return max(scores, key=lambda path: (scores[path], int(path.name[5:])), default=None)

    def _score(self, path: Path) -> float | None:
        if self.values is not None:
            return self.values.get(int(path.name[5:]))
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            return float(manifest["score"]["value"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # of an earlier version, or damaged, which a resume reports

    def newest(self) -> Path | None:
        """The newest checkpoint that is not damaged; None if there is none at all, CheckpointError
        if all are damaged. Damaged ones are printed and renamed to `step-NNNNNN.damaged`; the
        staging folder of a run that was killed is removed."""
        if self.staging.exists():
            shutil.rmtree(self.staging)
        checkpoints = self.steps()
        for path in reversed(checkpoints):
            problem = verify(path)
            if problem is None:
                return path
            _set_aside(path, "damaged", f"is damaged ({problem})")
        if checkpoints:
            raise CheckpointError(
                f"{self.folder}: all {len(checkpoints)} checkpoints are damaged and were set "
                'aside. "--resume never" starts over (the old folder is moved aside)'
            )
        return None


def _set_aside(path: Path, as_: str, why: str) -> None:
    aside = path.with_name(f"{path.name}.{as_}")
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    print(f"checkpoint {path.name} {why}; set aside as {aside.name}")


class Score:
    """The mean of a training metric since the last checkpoint; of `-loss`, of minus the loss, so
    that higher is better. Noisy and not held out, but free, and good enough to keep one checkpoint
    from before a run went wrong."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._values: list[float] = []

    def add(self, logs: dict[str, Any]) -> None:
        """Add the metrics that the trainer logged; trl logs None where there is no number."""
        value = logs.get(self.metric.removeprefix("-"))
        if value is not None and math.isfinite(float(value)):
            self._values.append(-float(value) if self.metric.startswith("-") else float(value))

    def take(self) -> dict[str, Any] | None:
        """`{"metric", "value", "logged"}` for a manifest, the last of them the number of values in
        the mean; None if nothing was logged. Then reset."""
        values, self._values = self._values, []
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        return {"metric": self.metric, "value": mean, "logged": len(values)}


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if every file matches the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected, step = dict(manifest["files"]), int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if path.name != f"step-{step:06d}":
        return f"{MANIFEST} is of step {step}"
    present = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(expected.keys() | present):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong there"
        if _identity(path / name) != expected[name]:
            return f"{name} is not what was written"
    return None


def only_length(changes: list[str]) -> bool:
    """Whether nothing differs but how long is trained."""
    return all(line.split(" was ")[0].removeprefix("settings.") in LENGTH for line in changes)


def check_same_run(path: Path, facts: dict[str, Any], anyway: bool = False) -> list[str]:
    """How the facts of a run differ from those of a checkpoint's run, one line each. Raises
    ConfigError if they do, unless `anyway`."""
    earlier = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["facts"]
    earlier.pop("processes", None)  # which earlier versions recorded
    if "settings" in earlier:
        earlier["settings"] = without_removed(earlier["settings"])
    changes = differences("", earlier, facts)
    if changes and not anyway:
        raise ConfigError(
            f"{path} is of another run:\n         "
            + "\n         ".join(changes)
            + '\n       "--resume-anyway" resumes it nevertheless, "--resume never" starts over '
            "(the old folder is moved aside)"
        )
    return changes


def differences(where: str, earlier: Any, now: Any) -> list[str]:
    """`key.path was X, now Y` for each value that differs between two nested mappings."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted(earlier.keys() | now.keys())
        inner = f"{where}." if where else ""
        return [d for k in keys for d in differences(f"{inner}{k}", earlier.get(k), now.get(k))]
    return [] if earlier == now else [f"{where} was {earlier!r}, now {now!r}"]


def _identity(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
