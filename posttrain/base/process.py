"""Output that may lose its reader: `| head` has read enough, `| tee` died of the same Ctrl-C, the
terminal was closed. What is written then goes nowhere, and the process goes on."""

import errno
import io
import os
import sys
from typing import TextIO


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


def outlive_readers() -> None:
    """Let standard output and error lose their readers without an error."""
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


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
