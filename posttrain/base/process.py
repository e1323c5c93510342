"""The process of a script: its exit code, and output that may lose its reader.

`| head` has read enough, `| tee` died of the same Ctrl-C, the terminal was closed: output is then
dropped, and the process continues.
"""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TextIO

from posttrain.base.disk import ensure_home
from posttrain.base.errors import PostTrainError
from posttrain.base.paths import ROOT

# Errors of a folder where this user cannot write, or of a file where a folder should be.
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class _Unheard(io.FileIO):
    """A file descriptor that becomes /dev/null once nobody reads it any more."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data))  # type: ignore[arg-type]


def run_script(name: str, *arguments: str) -> int:
    """Run scripts/NAME.py in a process with this environment and terminal, but nothing to read;
    returns its exit code, 128 + the number of a signal that ended it."""
    sys.stdout.flush()  # what was printed before comes first
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    # Unsloth sets this one, and huggingface_hub warns that it has no effect.
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_ENABLE_HF_TRANSFER"}
    code = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment).returncode
    return code if code >= 0 else 128 - code


def share_the_processor() -> None:
    """Let threads that wait for each other do so for microseconds, and then sleep; call it before
    torch is imported. Waiting for longer made single steps of the demo take thirty times as long
    beside other programs; not waiting at all made every step take twice as long."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def outlive_readers() -> None:
    """Let standard output and error lose their readers without an error, or have none at all."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, as by >&-: the next file would take its number, and be written to
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = _outliving(sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False))
    sys.stderr = _outliving(sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False))


def _outliving(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        raw = _Unheard(stream.fileno(), "w", closefd=False)
    except io.UnsupportedOperation:  # no file: it is captured inside this process
        return stream
    stream.flush()
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # PYTHONUNBUFFERED stays so
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class Terminated(BaseException):
    """SIGTERM, where nothing else waits for it. Not an Exception, as KeyboardInterrupt is none."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run `main` and leave the process with its exit code. A PostTrainError becomes one message; so
    does a signal, wherever it comes, but while training StopRequest first sees to a checkpoint. A
    second signal ends the process at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _on_sigterm)
    outlive_readers()
    if not sys.stderr.isatty():  # it draws its bars again in pipes and log files too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        ensure_home()
        sys.exit(main() or 0)
    except PostTrainError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno in {*NOT_ALLOWED, errno.ENAMETOOLONG} and error.filename:
            _fail(
                f"{error.filename}: {str(error.strerror).lower()}; name another folder (--output, "
                "POSTTRAIN_CACHE or HF_HOME), or see who owns this one"
            )
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            f"the disk is full{where}; what was saved before is complete. Free some space and run "
            "the same command again"
        )
    except (KeyboardInterrupt, Terminated) as stopped:
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        print(
            f"\nstopped by {number.name}; what is on the disk is complete, and the same command "
            "resumes from there",
            file=sys.stderr,
        )
        _exit_without_waiting(128 + number)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _exit_without_waiting(code: int) -> None:
    """End the process. Threads that wait for a server's answer are not waited for."""
    current = threading.current_thread()
    if any(not (thread.daemon or thread is current) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise Terminated
