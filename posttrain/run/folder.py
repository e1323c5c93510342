"""The run folder: opened, described, resumed, and finished with a comparison."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.measures import Change
from posttrain.base.errors import ConfigError
from posttrain.base.files import fingerprint, jsonl_rows, read_object, write_json, write_text
from posttrain.base.lock import hold_beside
from posttrain.base.paths import ROOT
from posttrain.base.processor import cores
from posttrain.run.checkpoint import LENGTH, CheckpointStore, differences, only_length, verify
from posttrain.settings.section import Section, without_removed
from posttrain.settings.strict_yaml import dump_yaml, read_yaml

PACKAGES = (
    *("unsloth", "unsloth_zoo", "trl", "transformers"),
    *("torch", "peft", "bitsandbytes", "datasets"),
)
STARTED = datetime.now().astimezone().isoformat(timespec="seconds")
# What shapes neither training nor scores; the method shows in the sections that do.
NOT_SHAPING = ("method", "run", "tracking", "health", "export")
START_OVER = '"--resume never" to start over (the old folder is moved aside)'


class RunFolder:
    """A folder that is readable and complete with no account anywhere. See docs/watching.md."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointStore(path / "checkpoints")
        self.adapter = self.path / "adapter"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.health = self.path / "health.jsonl"

    def lock(self) -> None:
        """Keep other runs out of this folder, as long as this object is there; ConfigError if one
        is writing to it."""
        self._lease = hold_beside(self.path, "another run is writing there")

    @property
    def finished(self) -> bool:
        """The last thing that a run writes is there."""
        return (self.path / "eval" / "comparison.json").exists()

    @property
    def trained(self) -> bool:
        """Nothing is left to train and the adapter is saved, whether or not it was scored."""
        if self.finished:
            return True
        trained = _recorded(self.path).get("trained")
        return trained is not None and "exit_code" not in trained

    def threads(self) -> int | None:
        """CPU threads that the run was started with, where they were recorded and are here."""
        recorded = _recorded(self.path).get("threads")
        return recorded if isinstance(recorded, int) and 0 < recorded <= cores() else None

    def is_done(
        self, settings: Section, resume: str, or_else: str = START_OVER, anyway: bool = False
    ) -> bool:
        """Whether the folder holds this run, finished, which `--resume auto` leaves as it is; where
        `run.score` is false, trained is enough. A finished run of other settings is not done if
        `anyway`, else a ConfigError: give another folder, or do what `or_else` says."""
        score = settings.model_dump(mode="json")["run"]["score"]
        if resume != "auto" or not (self.finished if score else self.trained):
            return False
        if changed := self.changed(settings):
            if anyway:
                return False
            extends = or_else == START_OVER and only_length(changed)  # ./run repeat cannot
            extend = "--resume-anyway to train on to the new length, " * extends
            raise ConfigError(
                f"{self.path} is a finished run of other settings:\n         "
                + "\n         ".join(changed)
                + f"\n       give {extend}another --output, or {or_else}"
            )
        return True

    def changed(self, settings: Section) -> list[str]:
        """The settings that shape training or scores and differ in the folder's run."""
        earlier = without_removed(read_yaml(self.path / "config.yaml"))
        now = settings.model_dump(mode="json")
        # Which adapter the run ended with, and whether it could end early.
        own = {name: (earlier.get("run") or {}).get(name) for name in ("keep", "patience")}
        for name in NOT_SHAPING:  # exports, for one, can be added to a finished run
            earlier[name] = now[name]
        earlier["run"] = {**now["run"], **own}
        return differences("", earlier, now)

    def checkpoint(self, resume: str) -> Path | None:
        """The checkpoint to resume from, for `--resume auto|never|PATH`. Raises ConfigError if the
        path is not a checkpoint, CheckpointError if every checkpoint is damaged."""
        if resume == "never":
            return None
        if resume == "auto":
            return self.checkpoints.newest()
        path = Path(resume).absolute()
        if problem := verify(path):
            raise ConfigError(f"--resume {resume}: not a complete checkpoint: {problem}")
        return path

    def open(self, fresh: bool) -> None:
        """Make the folder; with `fresh`, one that is already there is moved aside, not deleted. So
        are the results of a finished run that `--resume PATH` trains on: until it is finished
        again, it has no comparison, and no exports of its weights."""
        if fresh and self.path.exists():
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.previous-{number}")).exists():
                number += 1
            self.path.rename(aside)
            print(f"Moved the earlier run to {aside}")
        for name in ("eval/comparison.json", "export.json"):
            if (self.path / name).exists():
                earlier = (self.path / name).with_suffix(".previous.json")
                (self.path / name).replace(earlier)
                print(f"Moved {name} of the finished run to {earlier.name}")
        (self.path / "eval").mkdir(parents=True, exist_ok=True)
        self.checkpoints.folder.mkdir(exist_ok=True)

    def describe(self, settings: Section, facts: dict[str, Any]) -> None:
        """Write config.yaml (resolved) and environment.json (`facts` are added to it)."""
        write_text(self.path / "config.yaml", dump_yaml(settings.model_dump(mode="json")))
        write_json(self.path / "environment.json", {**environment(), **facts})

    def amend(self, facts: dict[str, Any]) -> None:
        """Add facts to environment.json, such as why a run stopped."""
        write_json(self.path / "environment.json", {**_recorded(self.path), **facts})

    def identity(self, settings: Section, facts: dict[str, Any]) -> dict[str, Any]:
        """What must be the same for a checkpoint, and the scores taken before it, to be of this
        run: the settings that shape training and scores, the data, the base model's weights, and
        the versions."""
        values = settings.model_dump(mode="json", exclude=set(NOT_SHAPING))
        for name in ("save_total_limit", "logging_steps"):
            values["training"].pop(name)
        return {
            "settings": values,
            "data": facts["data"],
            "weights": facts["weights"],
            "versions": environment()["versions"],
        }

    def drop_scores_of_others(self, identity: dict[str, Any]) -> str:
        """Remove scores from before training that a run of another identity, apart from the length,
        took in this folder; returns a mark of this identity, for environment.json."""
        settings = identity["settings"]
        training = {k: v for k, v in settings["training"].items() if f"training.{k}" not in LENGTH}
        mark = fingerprint([{**identity, "settings": {**settings, "training": training}}])
        if _recorded(self.path).get("scores_of", mark) != mark:
            for scores in (self.path / "eval").glob("before*.jsonl"):
                scores.unlink()
        return mark

    def write_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Write eval/NAME.jsonl, replacing it."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(self.path / "eval" / f"{name}.jsonl", "".join(lines))

    def read_rows(self, name: str) -> list[dict[str, Any]] | None:
        """Rows of eval/NAME.jsonl, None if it was not written."""
        path = self.path / "eval" / f"{name}.jsonl"
        return jsonl_rows(path) if path.exists() else None

    def write_comparison(self, changes: Mapping[str, Change]) -> None:
        """Write eval/before.json, eval/after.json and, last, eval/comparison.json."""
        for name, part in (("before", "before"), ("after", "after"), ("comparison", "alone")):
            content = {each: asdict(getattr(change, part)) for each, change in changes.items()}
            write_json(self.path / "eval" / f"{name}.json", content)


def _recorded(folder: Path) -> dict[str, Any]:
    """environment.json; empty where it was not written yet."""
    path = folder / "environment.json"
    return read_object(path) if path.exists() else {}


def environment() -> dict[str, Any]:
    """What would be needed to repeat the run elsewhere: versions, commit, machine."""
    return {
        "started": STARTED,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """The project's commit, `-dirty` when files differ from it; None outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
