"""A user name, a home and caches for libraries that end in a traceback without them.

A container that is started with a user id of its host has none of them; a home may also be missing
or read-only.
"""

import getpass
import os
import stat
import sys
import tempfile
from pathlib import Path

from posttrain.base.disk import can_write
from posttrain.base.errors import ConfigError


def ensure_home() -> None:
    """Set USER, HOME and the variables of caches where what is there cannot be used; print a note.

    Call it before any library is imported. Models in a home that can only be read stay in use.
    Raises ConfigError if no folder can be written that could take the place of another.
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
