"""Files written atomically, files of JSON rows, and fingerprints of both."""

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.base.errors import ConfigError, DataError, expected, first_line, given

# What makes a model behave as it does: weights, configuration, tokenizer, chat template.
CONTENT = {".safetensors", ".json", ".jinja", ".model", ".txt"}
_HASHED_IN_FULL = 8 * 2**30  # larger files are hashed in part
_PART = 64 * 2**20
T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a crash leaves the old file or the new one, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def follow_umask(path: Path) -> None:
    """Give a file the mode of any new one; safetensors writes files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(PermissionError):  # a disk without modes, such as a mounted Drive
        path.chmod(0o666 & ~mask)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, on disks that can: others say EINVAL."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused (it is not JSON)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ConfigError if it cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it from a copy") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} should hold an object, got {given(value)}; restore it")
    return value


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file; ConfigError if it is not a complete one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read ({first_line(error)}); copy it again from where it was made "
            "(git lfs pull, if git has left a pointer there)"
        ) from None


def jsonl_rows(path: Path, damaged: list[int] | None = None) -> list[dict[str, Any]]:
    """All rows of a JSONL file. A line that is not a JSON object raises DataError; with `damaged`,
    it is left out and its number added to that, unless it is a last line without an end, which is
    being written or was cut off by a crash."""
    *lines, rest = path.read_bytes().split(b"\n")  # a text may hold other line separators
    rows = []
    for number, line in enumerate([*lines, rest], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif damaged is None:
            raise DataError(f"{path}: line {number} is not a JSON object")
        elif number <= len(lines):
            damaged.append(number)
    return rows


def rows_of(kind: type[T], rows: Sequence[dict[str, Any]], where: Path) -> list[T]:
    """Each row of the file `where` as a `kind`, which is a dataclass; other keys of a row are
    ignored. Raises DataError if a row is not one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(list[kind]).validate_python(rows)  # type: ignore[valid-type]
    except ValidationError as error:
        index, *keys = error.errors()[0]["loc"]
        wrong = f"{'.'.join(map(str, keys))}: {expected(error.errors()[0])}"
        raise DataError(
            f"{where}: row {int(index) + 1} is not a {kind.__name__}: {wrong}"
        ) from None


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a JSONL file; a number that JSON does not know (NaN, infinity) becomes null."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(map(_line, rows))


def _line(row: dict[str, Any]) -> str:
    clean = {k: None if not_finite(v) else v for k, v in row.items()}
    return json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n"


def not_finite(value: Any) -> bool:
    """Whether a value is a number that JSON does not know."""
    return isinstance(value, float) and not math.isfinite(value)


def keep_rows_until(path: Path, step: int) -> None:
    """Drop rows after `step`: a resumed run writes them again."""
    if path.exists():
        cut_off_half_line(path)
        rows = [row for row in jsonl_rows(path) if row["step"] <= step]
        write_text(path, "".join(map(_line, rows)))


def cut_off_half_line(path: Path) -> None:
    """Remove a last line that has no end, which a crash left."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def fingerprint(values: Sequence[Any]) -> str:
    """SHA-256 over rows, to compare the data of two runs."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Hex digest over the names and contents of what makes a model or adapter folder behave as it
    does. Of a file over 8 GB, its size and its first and last 64 MB stand for it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in CONTENT and p.is_file()):
        size = path.stat().st_size
        content = sha256(path) if size <= _HASHED_IN_FULL else _in_part(path, size)
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _in_part(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256(f"{size}\n".encode() + file.read(_PART))
        file.seek(size - _PART)
        digest.update(file.read(_PART))
    return digest.hexdigest()
