"""Where what one run may leave for the next is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$POSTTRAIN_CACHE, else `posttrain` in the user's cache folder."""
    named = os.environ.get("POSTTRAIN_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named or Path(users) / "posttrain").expanduser().absolute()
