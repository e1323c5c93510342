"""Folders to write to: whether this user may, and whether there is space, at the start and when a
save fails; and a home and caches for libraries that end in a traceback without them."""

import errno
import getpass
import os
import shutil
import stat
import sys
import tempfile
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
    """Whether a save failed for want of space. torch and safetensors wrap the system's error; torch
    then fails again on closing its half-written archive, with another message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    message = str(error).lower()
    return (
        "no space left" in message
        or "storagefull" in message
        or ("inline_container" in message and shutil.disk_usage(folder).free < 2**20)
    )


def ensure_home() -> None:
    """Set USER, HOME and the variables of caches where what is there cannot be used; print a note.

    A container that is started with a user id of its host has none of them; a home may also be
    missing or read-only. Models in a home that can only be read stay in use. Call it before any
    library is imported. Raises ConfigError if no folder can be written to take another's place.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from CPython 3.13 on
        os.environ["USER"] = f"uid-{os.getuid()}"  # torch names a cache after it
    refused: dict[str, str] = {}
    home = os.path.expanduser("~")  # which is "~" where there is none
    if not (os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.X_OK)):
        refused["HOME"] = home
        os.environ["HOME"] = str(_spare_home())
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Variables of the folders that libraries write to, and where these are unless they are set.
    for name, default, below in (
        ("HF_HOME", f"{cache}/huggingface", ".cache/huggingface"),
        ("XDG_CACHE_HOME", cache, ".cache"),
        ("XDG_CONFIG_HOME", os.path.expanduser("~/.config"), ".config"),
        ("TRITON_HOME", os.path.expanduser("~"), ""),
    ):
        folder = os.path.expanduser(os.environ.get(name) or default)
        if can_write(Path(folder)):
            continue
        alone = name in os.environ or can_write(Path(home))
        refused |= {name: folder} if alone else {"HOME": home}
        os.environ[name] = str(_spare_home() / below)
        if name == "HF_HOME" and os.path.isdir(folder):  # what was downloaded there is read
            os.environ.setdefault("HF_DATASETS_CACHE", f"{os.environ[name]}/datasets")
            os.environ[name] = folder
    if refused:
        where = ", ".join(f"{name}={folder}" for name, folder in refused.items())
        what = "HOME is not set" if where == "HOME=~" else f"cannot write to {where}"
        print(
            f"note: {what}; caches are kept in {_spare_home()}. Set {', '.join(refused)} to a "
            "folder that stays",
            file=sys.stderr,
        )


def _spare_home() -> Path:
    """A folder of this user alone below the one for temporary files, the same at every call."""
    try:
        folder = Path(tempfile.gettempdir()) / f"posttrain-home-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else")
    except OSError as error:
        raise ConfigError(
            f"no home folder can be written, nor one for temporary files ({error}); set HOME and "
            "TMPDIR to folders that can be"
        ) from None
    return folder
