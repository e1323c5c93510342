"""export.json: what was exported, from which weights, and the results of the parity check.

The entries of `exports` are described in run/results.py (Exported). Each is written once its files
are in place, and is valid only while they have its hashes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.base.files import read_object, sha256, write_json
from posttrain.run.record import section
from posttrain.run.results import Check


def at_most(name: str, value: float | int, limit: float | int, of: int | None = None) -> Check:
    """A check that `value` is at most `limit`. NaN and infinity fail, and are stored as text."""
    stored = value if abs(value) < float("inf") else str(value)
    return Check(name, stored, limit, bool(value <= limit), of)


class Record:
    """Reads and writes the export.json of a folder."""

    def __init__(self, folder: Path, base: dict[str, str], adapter_sha256: str) -> None:
        """Keeps earlier entries. Those made from other weights become unproven."""
        self.folder = folder
        self.path = folder / "export.json"
        weights = {"base": base, "adapter_sha256": adapter_sha256}
        earlier = read_object(self.path) if self.path.is_file() else {}
        made = section(earlier, "exports").items()
        exports = {t: e for t, e in made if isinstance(e, dict) and e.keys() >= {"path", "files"}}
        if not weights.items() <= earlier.items():
            for entry in exports.values():
                entry |= {"proven": False, "stale": "made from other weights"}
            earlier = {}
        self.content: dict[str, Any] = {**weights, **earlier, "exports": exports}

    def proven(self, target: str, settings: dict[str, Any]) -> bool:
        """Whether a target passed the same check before and its files are unchanged."""
        entry = self.content["exports"].get(target)
        if not entry or not entry.get("proven") or entry.get("settings") != settings:
            return False
        return bool(entry["files"].items() <= _files(self.folder / entry["path"]).items())

    def add(
        self, target: str, path: Path, seconds: float, settings: dict[str, Any], checks: list[Check]
    ) -> bool:
        """Write the entry of a target whose files are in place; returns whether it is proven."""
        files = _files(path)
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


def _files(path: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of a file, or of each file in a folder, by its name."""
    folder = path if path.is_dir() else path.parent
    return {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    }
