"""One process at a time for a folder, on local disks and on those that machines share.

The lock is a file whose holder renews it (filelock's SoftFileLease). It is taken over at once from
a process of this machine that is dead, and from any other after a minute without a sign of life.
"""

import atexit
import contextlib
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.base.disk import check_folder
from posttrain.base.errors import ConfigError

if TYPE_CHECKING:
    from filelock import LeaseCompromise, SoftFileLease

LEASE = 60.0  # seconds without a sign of life; all contenders must agree on it
PATIENCE = 2.0  # seconds to take over a dead process's lock, or to see a short one end
_HELD: "weakref.WeakValueDictionary[Path, SoftFileLease]" = weakref.WeakValueDictionary()


def hold(lock: Path, folder: Path, what: str) -> "SoftFileLease":
    """Lock a folder, by the file `lock`, until the lease is released, let go of, or this process
    ends. Raises ConfigError if another process holds it: `what` it does there, and since when."""
    import filelock

    if (earlier := _HELD.pop(lock, None)) is not None:  # an earlier run in this very process
        earlier.release(force=True)
    lease = filelock.SoftFileLease(
        lock, lease_duration=LEASE, thread_local=False, on_compromise=_leave_if_superseded
    )
    try:
        try:
            lease.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            if (holder := _holder_here(lease)) is None:
                print(f"{folder}: {what}, it seems; waiting {LEASE:.0f} s for a sign of life")
            elif holder:
                raise ConfigError(f"{folder}: {what} ({holder}); wait for it or stop it") from None
            else:
                lease.force_break()
            lease.acquire(timeout=LEASE + PATIENCE)
    except filelock.Timeout:
        where = f"process {lease.owner.pid} on {_machine(lease)}" if lease.owner else lock
        raise ConfigError(f"{folder}: {what} ({where}); wait for it or stop it") from None
    _HELD[lock] = lease
    atexit.register(_release, weakref.ref(lease))
    return lease


def hold_beside(folder: Path, what: str) -> "SoftFileLease":
    """Lock a folder that may not exist yet, or be moved aside: the lock is beside it. Raises
    ConfigError as hold(), or if this user cannot write there."""
    where = folder.resolve()
    check_folder(where)
    where.parent.mkdir(parents=True, exist_ok=True)
    return hold(where.with_name(f".{where.name}.lock"), folder, what)


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder inside of the block; as hold_beside()."""
    lease = hold_beside(folder, what)
    try:
        yield
    finally:  # also for a signal, after which a process may end without its atexit functions
        lease.release()


def _release(reference: "weakref.ref[SoftFileLease]") -> None:
    if (lease := reference()) is not None:
        lease.release(force=True)


def _machine(lease: "SoftFileLease") -> str:
    return lease.owner.hostname.partition("?")[0] if lease.owner else ""


def _holder_here(lease: "SoftFileLease") -> str | None:
    """`process 1234, since 2026-11-24 22:05:13`; empty if it was killed, None if it is not here.

    A killed process keeps its number until its parent reads its exit code, which some containers
    never do. A container that was started again has the host name and perhaps the process number of
    the one that held the lock, but its process is younger than the holder's last sign of life.
    """
    import psutil

    if lease.owner is None or _machine(lease) != socket.gethostname():
        return None
    try:
        process = psutil.Process(lease.owner.pid)
        started = process.create_time()
        last_sign = Path(lease.lock_file).stat().st_mtime
    except (psutil.Error, OSError):
        return None
    if started > last_sign + 1:
        return None
    if process.status() == psutil.STATUS_ZOMBIE:
        return ""
    return f"process {lease.owner.pid}, since {datetime.fromtimestamp(started):%Y-%m-%d %H:%M:%S}"


def _leave_if_superseded(loss: "LeaseCompromise") -> None:
    """End this process if another one took its lock, as it may after a long sleep."""
    if loss.reason == "owner-changed":
        print(
            f"error: {loss.lock_file}: this process gave no sign of life for {LEASE:.0f} s, and "
            "another one has taken over its folder; what was saved is complete",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)
