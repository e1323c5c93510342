"""Run the project's scripts in processes that have imported Unsloth, trl and torch already.

Importing them takes longer than most test runs train. A server imports them once, with none of
the project's modules, and forks for each request; the fork takes over arguments, folder,
environment and files, runs the script as `__main__`, and ends as an interpreter ends. What the
libraries read from the environment while they are imported cannot be changed later: `usable` says
for which environments a fork is the same as a new process.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READ_LATER = ("WANDB_", "POSTTRAIN_", "PYTEST_", "NO_COLOR", "COLUMNS", "TERM")
"""Prefixes of variables that are read when they are used, not at import."""


# --- the tests' side ------------------------------------------------------------------------------


class Server:
    """Starts the server on first use; it ends with this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.path: Path | None = None
        self.environment = environment

    def start(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        path = folder / "socket"
        with open(folder / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", path],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        atexit.register(process.kill)
        assert process.stdout
        with process.stdout:
            ready = process.stdout.readline()
        assert ready == "ready\n", (folder / "log").read_text(encoding="utf-8")
        return path

    def usable(self, environment: dict[str, str]) -> bool:
        """Whether the libraries would be imported in the same way in this environment."""
        if not hasattr(os, "fork") or "PYTHONPATH" in environment:
            return False
        names = environment.keys() | self.environment.keys()
        changed = {n for n in names if environment.get(n) != self.environment.get(n)}
        return all(name.startswith(READ_LATER) for name in changed)

    def run(
        self,
        command: list[str],
        cwd: Path,
        environment: dict[str, str],
        timeout: float,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run(..., input=stdin, capture_output=True, text=True)."""
        self.path = self.path or self.start()
        with (
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX) as connection,
        ):
            files = [Path(folder, name) for name in ("in", "out", "err")]
            files[0].write_text(stdin, encoding="utf-8")
            connection.connect(str(self.path))
            connection.settimeout(timeout)
            request = {
                "argv": command,
                "cwd": str(cwd),
                "environment": environment,
                "files": [str(file) for file in files],
            }
            lines = connection.makefile("rw", encoding="utf-8")
            lines.write(json.dumps(request) + "\n")
            lines.flush()
            pid = int(lines.readline())
            try:
                code = int(lines.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout) from None
            texts = [file.read_text(encoding="utf-8") for file in files[1:]]
            return subprocess.CompletedProcess(command, code, *texts)


# --- the server's side ----------------------------------------------------------------------------


def import_libraries() -> dict[str, str]:
    """What runtime.start and the trainers import, in its order; the variables that it sets."""
    before = dict(os.environ)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(ROOT / "outputs" / ".unsloth_cache"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    import datasets  # noqa: F401
    import unsloth  # noqa: F401
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

    gc.freeze()  # a fork's collections would copy every page of them
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def serve(path: str, ready: int) -> dict[str, Any]:
    """Write to `ready`, then accept requests for ever; returns in a fork, with its request."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        os.write(ready, b"ready\n")
        os.close(ready)
        while True:
            connection, _ = listening.accept()
            lines = connection.makefile("rw", encoding="utf-8")
            request: dict[str, Any] = json.loads(lines.readline())
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                pid = os.fork()
                if pid == 0:
                    return request
                lines.write(f"{pid}\n")
                lines.flush()
                _, status = os.waitpid(pid, 0)
                lines.write(f"{os.waitstatus_to_exitcode(status)}\n")
                lines.flush()
                os._exit(0)
            lines.close()
            connection.close()


def become(request: dict[str, Any], imported: dict[str, str]) -> str:
    """Take over the request's output, folder, environment and arguments; returns the script."""
    for number, name in enumerate(request["files"]):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        file = os.open(name, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update({**request["environment"], **imported})
    os.chdir(request["cwd"])
    script: str = request["argv"][0]
    sys.argv = request["argv"]
    sys.path[0] = str(Path(script).parent)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("tests", "posttrain")]:
        del sys.modules[name]
    return script


if __name__ == "__main__":
    answer = os.dup(1)
    os.dup2(2, 1)  # what the libraries print goes to the log
    set_by_import = import_libraries()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    runpy.run_path(become(serve(sys.argv[1], answer), set_by_import), run_name="__main__")
