"""Short runs of both scripts behind closed sockets, with made-up secrets in the environment."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.reliability.inside import on_forward, own_handlers

__all__ = ["on_forward", "own_handlers", "sealed"]

SECRETS = {
    "HF_TOKEN": "hf_" + "SentinelHub9" * 3,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "SentinelOld7" * 3,
    "WANDB_API_KEY": "5e9712e1" * 5,
    "OPENAI_API_KEY": "sk-" + "SentinelKey3-" * 3,
}
# Python reports every use of a socket to this hook, also one made by a library's own C code through
# the socket module, and a hook that raises stops it. Sockets of this machine stay open.
CLOSED = """
import os, sys, traceback

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = (arguments[0],)
    else:
        return
    if isinstance(address, (str, bytes)):  # a Unix socket
        return
    if address is None or address[0] in (None, "", "localhost", b"localhost", "127.0.0.1", "::1"):
        return
    with open(os.environ["CLOSED_LOG"], "a") as log:
        log.write(f"{event} {address}\\n" + "".join(traceback.format_stack()))
    raise OSError(101, "Network is unreachable")

sys.addaudithook(hook)
"""
FEW = {
    "grpo": ["training.per_device_train_batch_size=16", "evaluation.limit=4"],
    "dpo": ["training.per_device_train_batch_size=8", "evaluation={limit: 8, replies: 2}"],
}


@dataclass(frozen=True)
class Sealed:
    """What a sealed run left."""

    result: subprocess.CompletedProcess[str]
    home: Path
    """HOME, the working folder, and every folder that a library may write to."""
    run: Path
    tried: Path
    """Where attempts to reach another machine are noted, with what made them."""

    def written(self) -> dict[str, bytes]:
        """Everything that the run produced: its files by path, what it printed."""
        files = {str(p): p.read_bytes() for p in self.home.rglob("*") if p.is_file()}
        return {
            **files,
            "standard output": self.result.stdout.encode(),
            "standard error": self.result.stderr.encode(),
        }


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Sealed]:
    """`sealed("grpo", "key=value", ...)` -> the run of two steps; asked again, the same one."""
    done: dict[tuple[str, ...], Sealed] = {}

    def start(script: str, *overrides: str) -> Sealed:
        if (script, *overrides) in done:
            return done[(script, *overrides)]
        home = tmp_path_factory.mktemp(f"sealed-{script}")
        hooks, tried = tmp_path_factory.mktemp("hooks"), home.parent / f"{home.name}.tried"
        (hooks / "sitecustomize.py").write_text(CLOSED)
        environment = {
            **os.environ,
            **SECRETS,
            "HOME": str(home),
            "HF_HOME": str(home / "hub"),
            "UNSLOTH_COMPILE_LOCATION": str(home / "compiled"),
            "WANDB_MODE": "offline",
            "PYTHONPATH": str(hooks),
            "CLOSED_LOG": str(tried),
        }
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "WANDB_DIR"):
            environment.pop(name, None)
        command = [
            *(sys.executable, str(ROOT / "scripts" / f"{script}.py")),
            *("--config", str(ROOT / "configs" / f"{script}_demo.yaml")),
            *("--output", str(home / "run"), "training.max_steps=2", "training.save_steps=1"),
            *("run.threads=1", *FEW[script], *overrides),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=home, env=environment
        )
        done[(script, *overrides)] = Sealed(result, home, home / "run", tried)
        return done[(script, *overrides)]

    return start
