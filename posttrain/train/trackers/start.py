"""Trackers beside the run folder: W&B, and TensorBoard and Trackio by the trainer's own hands."""

import os
from collections.abc import Sequence
from typing import Any

from posttrain.base.distributed import is_main
from posttrain.run.folder import RunFolder
from posttrain.settings import Section
from posttrain.train.trackers import wandb_log

# Where each keeps its files, unless the user's environment says otherwise.
FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "trackio": "TRACKIO_DIR"}


def keep_files_in(run: RunFolder, report_to: Sequence[str]) -> None:
    """Have the trainer's integrations write into the run folder. Before they are imported."""
    for name, variable in FOLDERS.items():
        if name in report_to:
            os.environ.setdefault(variable, str(run.path / name))


def start_trackers(run: RunFolder, settings: Section, facts: dict[str, Any]) -> wandb_log.WandbLog:
    """Start W&B if it is on; what comes back does nothing if it is not."""
    values = settings.model_dump(mode="json")
    log = wandb_log.WandbLog(run, values)
    log.active = is_main()
    log.start(facts, asked="wandb" in values["tracking"]["report_to"])
    return log
