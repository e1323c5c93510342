"""Checkpoints that are whole or absent, proven before they are used, and signals that end in one.

The trainer writes into a staging folder. When it is done, every file is synced, a manifest with
sizes and SHA-256 is written last, and the folder is renamed to `step-NNNNNN`: a crash at any moment
leaves the earlier checkpoints as they were. On resume a checkpoint counts only if every file is the
one that the manifest names.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.common import distributed
from scripts.common.atomic import sync_folder, write_json
from scripts.common.errors import CheckpointError, ConfigError

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


def check_disk(folder: Path, checkpoint_bytes: int, keep: int, export_bytes: int = 0) -> None:
    """Check that a run will fit: the newest checkpoints and the best, one more being written, and
    what is exported at the end.

    Raises:
        ConfigError: it will not.
    """
    needed = checkpoint_bytes * (keep + 2) + export_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = "the checkpoints and exports" if export_bytes else "the checkpoints"
        raise ConfigError(
            f"{folder}: {free / 2**30:.2f} GB free, and {what} need {needed / 2**30:.2f} GB; free "
            "some, lower training.save_total_limit, or give another --output"
        )


def disk_full_error(folder: Path) -> CheckpointError:
    """What to raise when a save failed for want of space."""
    return CheckpointError(
        f"{folder}: the disk is full; the checkpoints before this one are whole. Free some space "
        "and give the same command again"
    )


def is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether a save failed for want of space.

    torch and safetensors wrap the system's error. torch's says at best that a write failed, and
    then fails once more on closing its half-written archive, with a word of positions.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = str(error).lower()
    return (
        "no space left" in said
        or "storagefull" in said
        or ("inline_container" in said and shutil.disk_usage(folder).free < 2**20)
    )


class StepAbandoned(BaseException):
    """A signal came in the middle of a step that need not be finished.

    Not an Exception, so that no library takes it for a failure of its own.
    """


class StopRequest:
    """Why a run should end at its next safe point: a signal, or its time is up.

    As a context manager it listens for SIGINT and SIGTERM; a second one ends the process at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.exit_code: int | None = None
        """Exit code to leave with once a stop was asked for, else None."""
        self.reason = ""
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._earlier: dict[int, Any] = {}
        self._abandoning = False

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self.reason = signal.Signals(number).name
        print(
            f"\n{self.reason}: writing a checkpoint; once more stops at once",
            flush=True,
        )
        for each in self._earlier:
            signal.signal(each, signal.SIG_DFL)
        if self._abandoning:
            self._abandoning = False
            raise StepAbandoned

    @contextlib.contextmanager
    def abandoning(self, allowed: bool) -> Iterator[None]:
        """Where `allowed`, a signal ends what is done inside at once, with StepAbandoned."""
        self._abandoning = allowed
        try:
            if allowed and self.exit_code is not None:  # it came between two steps
                raise StepAbandoned
            yield
        finally:
            self._abandoning = False

    def wanted(self) -> bool:
        """Whether to stop; looks at the clock too. Several processes stop at the same step: all of
        them must ask after every step, and one that wants to is enough."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self.exit_code is None and late:
            self.exit_code, self.reason = 0, "run.max_minutes is over"
        agreed = distributed.highest(-1 if self.exit_code is None else self.exit_code)
        if self.exit_code is None and agreed >= 0:
            self.exit_code, self.reason = agreed, "another process stopped"
        return self.exit_code is not None
