"""Patches a module the moment it has been imported, and refuses to patch what has changed.

`@after_import("package.module")` registers a function that is called with the module. It replaces
names by `put`, which compares the source of what is replaced with the one that was read when the
replacement was written (pins.json): where Unsloth moves or rewrites a name, the import fails with
what to read again, and nothing is tested by accident.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PINS = Path(__file__).with_name("pins.json")
REPINNING = "PRETEND_GPU_REPIN"
"""Environment variable under which changed sources are let through, to be pinned anew."""
Patch = Callable[[Any], None]
_patches: dict[str, list[Patch]] = {}
replaced: dict[str, str | None] = {}
"""What this process has replaced: a digest of its source, None where that is not looked at."""


class Moved(ImportError):
    """A name that is replaced is not there any more, or does something else."""


def after_import(*modules: str) -> Callable[[Patch], Patch]:
    """Call the decorated function with each of these modules once it has been imported."""

    def register(patch: Patch) -> Patch:
        for module in modules:
            _patches.setdefault(module, []).append(patch)
        return patch

    return register


def put(owner: Any, name: str, replacement: Any) -> None:
    """Replace `owner.name`, a name of a module or of a class.

    Raises:
        Moved: it is not there, or its source is not the one in pins.json.
    """
    if isinstance(owner, ModuleType):
        key = f"{owner.__name__}.{name}"
    else:
        key = f"{owner.__module__}.{owner.__qualname__}.{name}"
    original = inspect.getattr_static(owner, name, None)
    if original is None:
        raise Moved(f"{key} is gone; tests/pretend_gpu replaces it: see which name took its place")
    # torch is many names of a stable interface, whose being there is enough.
    replaced[key] = None if key.startswith("torch.") else _digest(original)
    pinned = json.loads(PINS.read_text(encoding="utf-8"))["sources"] if PINS.exists() else {}
    if REPINNING not in os.environ and pinned.get(key, ...) != replaced[key]:
        raise Moved(
            f"{key} is not the one that tests/pretend_gpu was written against: read its source, "
            "change the replacement where it matters, then: ./run python -m tests.pretend_gpu --pin"
        )
    setattr(owner, name, replacement)


def _digest(original: Any) -> str | None:
    original = getattr(original, "__wrapped__", original)
    try:
        source = inspect.getsource(original)
    except (TypeError, OSError):  # written in C, or a value
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:16]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find, with the patches behind it."""

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _patches or name in self._busy:
            return None
        self._busy.add(name)
        try:
            others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
            result = (finder.find_spec(name, path, target) for finder in others)
            spec = next((spec for spec in result if spec is not None), None)
        finally:
            self._busy.discard(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_patch(module: ModuleType) -> None:
            execute(module)
            for patch in _patches[name]:
                patch(module)

        spec.loader.exec_module = then_patch  # type: ignore[method-assign]  # of this spec alone
        return spec


PARTS = ("cuda", "kernels", "precision", "storage", "tensors", "triton_")


def install() -> None:
    """Put the card in; torch must not have been imported."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: the card comes first")
    for part in PARTS:
        importlib.import_module(f"tests.pretend_gpu.{part}")
    sys.meta_path.insert(0, _Finder())
