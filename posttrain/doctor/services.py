"""Whether the hub answers, and whether it and W&B have a token. Tokens are never shown."""

import contextlib
import netrc
import os
import threading
import urllib.parse
from pathlib import Path

import httpx

from posttrain.doctor import Finding
from posttrain.model.shape import model_cache

SECONDS = 1.0
TRUE = {"1", "ON", "YES", "TRUE"}


def look_at_services() -> list[Finding]:
    """Whether the hub answers within a second, and the tokens of the hub and W&B."""
    return [_hub(), _hub_token(), _wandb()]


def _answers(url: str) -> str:
    """'' if a server answers within the time, else why not. Any answer will do, a refusal too."""
    outcome = f"no answer within {SECONDS:g} s"

    def query() -> None:
        nonlocal outcome
        try:
            httpx.head(url, timeout=SECONDS)
            outcome = ""
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
            # The last two are of a proxy that httpx cannot use.
            outcome = f"not in reach ({error})"

    # DNS has no time limit here; a thread that hangs is left behind.
    thread = threading.Thread(target=query, daemon=True)
    thread.start()
    thread.join(SECONDS + 0.2)
    return outcome


def _host(url: str) -> str:
    """The server's name alone: a URL can hold a password."""
    return urllib.parse.urlsplit(url).hostname or "the given address"


def _hub() -> Finding:
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in TRUE:
            text = f"not queried: {name} is set, so only what is in the cache can be used"
            return Finding("hub", "ok", text)
    if problem := _answers(url):
        advice = "models and datasets must be local or in the cache; the demos need none"
        return Finding("hub", "warn", f"{_host(url)}: {problem}", advice)
    return Finding("hub", "ok", f"{_host(url)} answers")


def _hub_token() -> Finding:
    named = os.environ.get("HF_TOKEN_PATH") or model_cache().parent / "token"
    file = Path(os.path.expanduser(named))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return Finding("hub token", "ok", f"set, in {name}")
    if file.is_file() and file.stat().st_size:
        return Finding("hub token", "ok", f"set, in {file}")
    return Finding("hub token", "ok", "none; the configs here need none")


def _wandb() -> Finding:
    if os.environ.get("WANDB_API_KEY"):
        return Finding("W&B", "ok", "key set, in WANDB_API_KEY")
    file = os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")
    host = _host(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    with contextlib.suppress(netrc.NetrcParseError, OSError):
        if netrc.netrc(file).authenticators(host):
            return Finding("W&B", "ok", f"key set, in {file}")
    text = "no key; records stay in the run folder, which is complete without it"
    return Finding("W&B", "ok", text)
