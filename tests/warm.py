"""Run the project's scripts in processes that have imported Unsloth, trl and torch already.

Importing them takes longer than most test runs train. A server imports them once, with none of
the project's modules, and forks for each request; the fork takes over arguments, folder,
environment and files, runs the script as `__main__`, and ends as an interpreter ends. What the
libraries read from the environment while they are imported cannot be changed later: `usable` says
for which environments a fork is the same as a new process.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
READ_LATER = (
    *("POSTTRAIN_", "PYTEST_", "NO_COLOR", "COLUMNS", "TERM"),
    "WANDB_",  # by wandb.init
    "HF_HUB_ENABLE_HF_TRANSFER",  # Unsloth sets it while it loads a model; the tests are offline
    # The scripts set them, also where a test calls their main() in its own process.
    *("HF_DATASETS_DISABLE_PROGRESS_BARS", "GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy"),
)
"""Prefixes of variables that are read when they are used, not at import."""


# --- the tests' side ------------------------------------------------------------------------------


class Server:
    """Starts the server on first use; it ends with this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.path: Path | None = None
        self.environment = environment
        self.set_by_import: set[str] = set()

    def start(self) -> None:
        if self.path:
            return
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
        assert ready, (folder / "log").read_text(encoding="utf-8")
        self.path, self.set_by_import = path, set(json.loads(ready))

    def usable(self, environment: dict[str, str]) -> bool:
        """Whether the libraries would be imported in the same way in this environment."""
        if not hasattr(os, "fork") or "PYTHONPATH" in environment:
            return False
        self.start()
        imported = self.set_by_import - self.environment.keys()  # this process may have them too
        names = (environment.keys() | self.environment.keys()) - imported
        changed = {n for n in names if environment.get(n) != self.environment.get(n)}
        return all(name.startswith(READ_LATER) for name in changed)

    def popen(
        self, command: list[str], cwd: Path, environment: dict[str, str], stdin: str = ""
    ) -> "Process":
        self.start()
        return Process(str(self.path), command, cwd, environment, stdin)


class Process:
    """What the tests need of subprocess.Popen, for a script in a fork."""

    def __init__(
        self, server: str, command: list[str], cwd: Path, environment: dict[str, str], stdin: str
    ) -> None:
        self.args = command
        self.folder = tempfile.mkdtemp(prefix="warm-")
        self.files = [Path(self.folder, name) for name in ("in", "out", "err")]
        self.files[0].write_text(stdin, encoding="utf-8")
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server)
        self.lines = self.connection.makefile("rw", encoding="utf-8")
        request = {
            "argv": command,
            "cwd": str(cwd),
            "environment": environment,
            "files": [str(file) for file in self.files],
        }
        self.lines.write(json.dumps(request) + "\n")
        self.lines.flush()
        self.pid = int(self.lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self.lines.readline())
            self.lines.close()
            self.connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to standard output and standard error, once it has ended."""
        self.wait(timeout)
        out, err = (file.read_text(encoding="utf-8") for file in self.files[1:])
        shutil.rmtree(self.folder)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


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


def serve(listening: socket.socket) -> dict[str, Any]:
    """Accept requests while the tests run; returns in a fork, with its request."""
    tests = os.getppid()
    while True:
        if not select.select([listening], [], [], 5)[0]:
            if os.getppid() != tests:
                sys.exit()
            continue
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
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        os.write(answer, json.dumps(sorted(set_by_import)).encode() + b"\n")
        os.close(answer)
        request = serve(listening)
    runpy.run_path(become(request, set_by_import), run_name="__main__")
