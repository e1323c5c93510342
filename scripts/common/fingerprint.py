"""SHA-256 of a file, and of a folder that holds a model or an adapter."""

import hashlib
from pathlib import Path

# What makes a model behave as it does: weights, configuration, tokenizer, chat template.
CONTENT = {".safetensors", ".json", ".jinja", ".model", ".txt"}
_WHOLE = 8 * 2**30  # larger files are hashed in part
_PART = 64 * 2**20


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
        digest.update(f"{path.name} ".encode())
        digest.update((sha256(path) if size <= _WHOLE else _in_part(path, size)).encode() + b"\n")
    return digest.hexdigest()


def _in_part(path: Path, size: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256(f"{size}\n".encode() + file.read(_PART))
        file.seek(size - _PART)
        digest.update(file.read(_PART))
    return digest.hexdigest()
