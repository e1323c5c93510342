"""export.json: what was exported, from which weights, and the results of the parity check.

    {"base": {"name", "dtype", "sha256"}, "adapter_sha256",
     "exports": {TARGET: {"path", "proven", "bytes", "seconds", "settings",
                          "files": {name: {"bytes", "sha256"}},
                          "checks": [{"name", "value", "limit", "passed", "of"}]}}}

An entry is written once its files are in place. It is valid only while they have its hashes.
What --score adds is told in score.py.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.base.files import sha256, write_json


@dataclass(frozen=True)
class Check:
    """One result of the parity check. passed: value <= limit, or value == limit for text."""

    name: str
    value: float | int | str
    limit: float | int | str | None
    passed: bool
    of: int | None = None
    """How many were checked, if the value is a count."""


def at_most(name: str, value: float | int, limit: float | int, of: int | None = None) -> Check:
    """A check that `value` is at most `limit`. NaN and infinity fail, and are stored as text."""
    kept = value if abs(value) < float("inf") else str(value)
    return Check(name, kept, limit, bool(value <= limit), of)


class Record:
    """Reads and writes the export.json of a folder."""

    def __init__(self, folder: Path, base: dict[str, str], adapter_sha256: str) -> None:
        """Keeps earlier entries. Those made from other weights become unproven."""
        self.folder = folder
        self.path = folder / "export.json"
        self.content: dict[str, Any] = {
            "base": base,
            "adapter_sha256": adapter_sha256,
            "exports": {},
        }
        if self.path.is_file():
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
            self.content["exports"] = earlier["exports"]
            if (earlier["base"], earlier["adapter_sha256"]) == (base, adapter_sha256):
                if "adapter_16bit" in earlier:
                    self.content["adapter_16bit"] = earlier["adapter_16bit"]
            else:
                for entry in self.content["exports"].values():
                    entry["proven"] = False
                    entry["stale"] = "made from other weights"

    def proven(self, target: str, settings: dict[str, Any]) -> bool:
        """Whether a target passed the same check before and its files are unchanged."""
        entry = self.content["exports"].get(target)
        if not entry or not entry["proven"] or entry.get("settings") != settings:
            return False
        at = self.folder / entry["path"]
        folder = at if at.is_dir() else at.parent
        for name, known in entry["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != known["bytes"]:
                return False
        hashes = {name: str(file["sha256"]) for name, file in entry["files"].items()}
        return hashes == {name: sha256(folder / name) for name in hashes}

    def add(
        self, target: str, path: Path, seconds: float, settings: dict[str, Any], checks: list[Check]
    ) -> bool:
        """Write the entry of a target whose files are in place; returns whether it is proven."""
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        root = path if path.is_dir() else path.parent
        files: dict[str, dict[str, Any]] = {
            str(p.relative_to(root)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
            for p in inside
        }
        proven = bool(checks) and all(check.passed for check in checks)
        self.content["exports"][target] = {
            "path": str(path.relative_to(self.folder)),
            "proven": proven,
            "bytes": sum(file["bytes"] for file in files.values()),
            "seconds": round(seconds, 1),
            "settings": settings,
            "files": files,
            "checks": [asdict(check) for check in checks],
        }
        write_json(self.path, self.content)
        return proven
