"""Where things are: the project, the cache, and a path as the user would type it."""

import os
import shlex
from pathlib import Path

from posttrain.base.errors import ConfigError, quoted

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the project."""


def cache_folder() -> Path:
    """Where what one run may leave for the next is kept: $POSTTRAIN_CACHE, else `posttrain` in the
    user's cache folder."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = os.environ.get("POSTTRAIN_CACHE") or users / "posttrain"
    return Path(os.path.expanduser(cache)).absolute()


def here_or_project(name: str | Path) -> Path:
    """The file or folder of that name: in this folder, or else in the project. Raises ConfigError
    for what can be no name of one, such as the content of a file."""
    here = Path(os.path.expanduser(name))  # pathlib's raises for `~nobody`, which is a name too
    try:
        return here if here.exists() else ROOT / name
    except OSError as error:
        reason = f"cannot be opened ({str(error.strerror).lower()})"
        raise ConfigError(f"{quoted(str(name))} {reason}; name a file or a folder") from None


def shown(path: Path) -> str:
    """A path as a user here would type it: relative where it is below this folder."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def is_gguf(name: str) -> bool:
    """Whether the name of a model is that of a GGUF file; raises ConfigError if there is none."""
    if not name.endswith(".gguf") or is_url(name):
        return False
    if not os.path.isfile(name):
        raise ConfigError(f"there is no file '{name}'")
    return True


def run_command() -> str:
    """`./run`, from wherever we are."""
    here = Path(os.path.relpath(ROOT / "run"))
    if here.parts[0] != "..":
        return shlex.quote(f"./{here}")
    return shlex.quote(str(here if len(here.parts) <= 3 else ROOT / "run"))
