"""The cores that this process may use, and how many of them other programs leave free."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Physical cores that this process may use: by affinity, and by its container's limit. Not by
    what else runs: sums of floats, and so results, depend on the number of threads."""
    import psutil

    allowed = len(os.sched_getaffinity(0))
    limit = cgroup_limit(Path("/proc/self/cgroup"), _CGROUPS)
    return max(1, int(min(psutil.cpu_count(logical=False) or allowed, allowed, limit)))


def free_cores(seconds: float = 0.5) -> int:
    """Those of cores() that other programs left idle during the next `seconds`; at least 1. Call it
    while this process computes nothing."""
    import psutil

    used = psutil.cpu_percent(seconds, percpu=True)
    idle = sum(1 - used[cpu] / 100 for cpu in os.sched_getaffinity(0) if cpu < len(used))
    return max(1, min(cores(), round(idle)))


def computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16, by Linux's list of its flags."""
    return any(flag in _text(Path("/proc/cpuinfo")) for flag in ("avx512_bf16", "amx_bf16"))


def cgroup_limit(membership: Path, root: Path) -> float:
    """The cores that a control group may use, by its limit and those above it; infinity without.
    `membership` is the process's file /proc/PID/cgroup, `root` where version 1 or 2 is mounted."""
    lowest = math.inf
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            numbers = " ".join(_text(group / name) for name in files).split()
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                lowest = min(lowest, int(numbers[0]) / int(numbers[1]))
    return lowest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
