"""Whether Weights & Biases takes part in a run: decided before it is started, so it never asks.

On when a key is there (WANDB_API_KEY, or ~/.netrc), `tracking.report_to` names wandb or WANDB_MODE
is offline, which needs no key; offline where the key cannot be used or its server is out of reach.
"""

import os
import socket
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Choice:
    """Whether and how W&B takes part."""

    mode: Literal["off", "offline", "online"]
    why: str = ""


def choose(asked: bool) -> Choice:
    """Decide before W&B is started; `asked`: the settings name wandb.

    Takes under a second beyond importing the client, which happens only where a key may be.
    """
    key_files = (os.environ.get("NETRC") or "~/.netrc", "~/_netrc")
    hints = [os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")]
    offline = os.environ.get("WANDB_MODE") == "offline"
    if not (
        asked or offline or any(hints) or any(Path(p).expanduser().exists() for p in key_files)
    ):
        return Choice("off")
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup().settings
    url, mode = settings.base_url, settings.mode
    if mode == "disabled":
        return Choice("off")
    try:
        key = wbauth.authenticate_session(
            host=url, source="choose", prompt=False, update_session=False
        )
    except wandb.Error as error:
        return Choice("offline", f"its key cannot be used ({error})")
    if mode == "offline" and (key or asked or offline):
        return Choice("offline", "WANDB_MODE is offline")
    if not (key or asked):
        return Choice("off")
    if not key:
        return Choice("offline", "there is no key (WANDB_API_KEY, or `wandb login`)")
    if not reachable(url):
        return Choice("offline", f"{urlsplit(url).hostname} is out of reach")
    return Choice("online")


def reachable(url: str, within: float = 0.9) -> bool:
    """Whether the host of `url`, or the proxy on the way to it, takes a connection in time.

    Looking up a name knows no time limit, so it is done in a thread that is left to itself.
    """
    host = urlsplit(url).hostname or ""
    proxy = urllib.request.getproxies().get(urlsplit(url).scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        url = proxy if "//" in proxy else f"//{proxy}"
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), within).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(within)
    return connected.is_set()
