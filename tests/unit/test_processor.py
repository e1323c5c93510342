"""The cores that threads are started on."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.base import processor

LINUX = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system has no affinity"
)


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2.0),
        ("", {}, math.inf),
    ],
)
def test_the_limit_of_a_container(
    membership: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    """Files as the kernel writes them: docs.kernel.org, cgroup-v2."""
    root = tmp_path / "cgroup"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (tmp_path / "membership").write_text(membership)
    assert processor.cgroup_limit(tmp_path / "membership", root) == limit


@LINUX
def test_cores_follow_affinity_and_free_ones_the_load() -> None:
    """In a process on one core: a program that keeps it busy leaves it the least there is."""
    here = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{here}}})\n"
        "from posttrain.base import processor\n"
        "print(processor.cores(), processor.free_cores(0.1))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.split() == ["1", "1"]


@LINUX
@pytest.mark.skipif(processor.cores() < 2, reason="needs two cores")
def test_busy_cores_are_not_free() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    spin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", spin, str(cpu)]) for cpu in cpus]
    try:
        time.sleep(0.5)
        assert processor.free_cores() == 1
    finally:
        for process in busy:
            process.kill()
            process.wait()
