"""The cores that threads are started on."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base import processor
from posttrain.model import runtime
from tests.helpers import Capsys
from tests.unit.conftest import write_file


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2.0),
        (
            "4:cpu,cpuacct:/docker/1f\n2:memory:/\n",
            {
                "cpu/docker/1f/cpu.cfs_quota_us": "50000",
                "cpu/docker/1f/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_limit_of_a_container(
    membership: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    """Files as the kernel writes them: docs.kernel.org, cgroup-v1/cpu and cgroup-v2."""
    root = tmp_path / "cgroup"
    for name, content in files.items():
        write_file(root / name, content)
    (tmp_path / "membership").write_text(membership)
    assert processor.cgroup_limit(tmp_path / "membership", root) == limit


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
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


@pytest.mark.parametrize(("free", "warns"), [(1, True), (2, False)])
def test_other_programs_that_keep_cores_busy_are_noted(
    free: int, warns: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.setattr(runtime, "free_cores", lambda: free)
    runtime._warn_of_load(2)
    assert ("OMP_NUM_THREADS=1 may be faster" in capsys.readouterr().err) == warns
