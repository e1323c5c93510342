"""Versions against the environment's lock, and room on the disks that a run writes to."""

import importlib.metadata
import platform
import re
import shutil
import sys
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from posttrain.base.disk import can_write, existing
from posttrain.base.paths import ROOT, shown
from posttrain.doctor import Finding, Status
from posttrain.model.shape import model_cache
from posttrain.run.folder import PACKAGES

VLLM = Path(sys.prefix).name.startswith(".venv-vllm")
"""Whether this is the environment of ./run --vllm."""
LOCK = ROOT / ("requirements-vllm.lock" if VLLM else "requirements.lock")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\]+))?")
RUN_GB = 4  # checkpoints, a merged 16-bit model and its GGUF files, for the 0.5B
MODEL_GB = 2  # the 0.5B in 4-bit and in 16-bit
LEAST_GB = 0.2


def locked(lock: Path = LOCK) -> dict[str, str]:
    """Name to version of every package of the lock that is for this machine."""
    pins = (_PIN.match(line) for line in lock.read_text(encoding="utf-8").splitlines())
    return {
        str(canonicalize_name(pin[1])): pin[2]
        for pin in pins
        if pin and (pin[3] is None or Marker(pin[3].strip()).evaluate())
    }


def look_at_versions() -> list[Finding]:
    """Python, which ./run chooses, and every package against the lock."""
    return [Finding("Python", "ok", platform.python_version()), _packages()]


def _packages() -> Finding:
    wanted = locked()
    wrong: dict[str, str] = {}
    for name, version in wanted.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] != version.partition("+")[0]:
            wrong[name] = f"{name} {installed}, locked {version}"
    count = f"{len(wanted) - len(wrong)} of {len(wanted)} packages as in {LOCK.name}"
    if not wrong:
        return Finding("packages", "ok", count)
    needed = {str(canonicalize_name(name)) for name in PACKAGES}
    status: Status = "fail" if needed & wrong.keys() else "warn"
    lock = f"{shown(Path(sys.prefix))}/installed.lock"
    command = "./run --vllm doctor" if VLLM else "./run doctor"
    advice = f"rm -f {lock}, then {command} installs what is locked"
    first = sorted(wrong, key=lambda name: (name not in needed, name))[:12]
    return Finding("packages", status, count, advice, tuple(wrong[name] for name in first))


def look_at_disks(output: Path) -> list[Finding]:
    """Room for the runs in `output`, and for models in the hub's cache."""
    return [
        _room("room for runs", output, RUN_GB),
        _room("room for models", model_cache(), MODEL_GB),
    ]


def _room(subject: str, folder: Path, wanted_gb: float) -> Finding:
    there = existing(folder)
    free = shutil.disk_usage(there).free / 2**30
    text = f"{free:.1f} GB free in {folder}"
    if not can_write(folder):
        return Finding(subject, "fail", f"{folder} cannot be written", f"make {there} writable")
    if free < LEAST_GB:
        return Finding(subject, "fail", text, "free some space, or name another disk")
    if free < wanted_gb:
        return Finding(subject, "warn", text, f"the 0.5B configs want about {wanted_gb} GB")
    return Finding(subject, "ok", text)
