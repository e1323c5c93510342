"""A folder to write to and the space on its disk: checked at the start, and when a save fails."""

import errno
import os
import shutil
from pathlib import Path

from posttrain.base.errors import CheckpointError, ConfigError


def check_disk(folder: Path, checkpoint_bytes: int, keep: int, export_bytes: int = 0) -> None:
    """Raise ConfigError unless a run will fit: the newest checkpoints and the best, one more being
    written, and what is exported at the end."""
    needed = checkpoint_bytes * (keep + 2) + export_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = "the checkpoints and exports" if export_bytes else "the checkpoints"
        raise ConfigError(
            f"{folder}: {free / 2**30:.2f} GB free, and {what} need {needed / 2**30:.2f} GB; free "
            "some, lower training.save_total_limit, or give another --output"
        )


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))


def can_write(folder: Path) -> bool:
    """Whether this user can write to a folder, or create it."""
    there = existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def check_folder(folder: Path) -> None:
    """Raise ConfigError unless this user can write to a folder, or create it."""
    there = existing(folder)
    if not there.is_dir():
        raise ConfigError(f"--output {folder}: {there} is a file; give a folder")
    if not can_write(there):
        raise ConfigError(f"--output {folder}: nothing can be written to {there}; give another")


def disk_full_error(folder: Path) -> CheckpointError:
    """What to raise when a save failed for want of space."""
    return CheckpointError(
        f"{folder}: the disk is full; the checkpoints before this one are complete. Free some "
        "space and run the same command again"
    )


def is_disk_full(error: Exception, folder: Path) -> bool:
    """Whether a save failed for want of space.

    torch and safetensors wrap the system's error; torch then fails again on closing its
    half-written archive, with another message.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    message = str(error).lower()
    return (
        "no space left" in message
        or "storagefull" in message
        or ("inline_container" in message and shutil.disk_usage(folder).free < 2**20)
    )
