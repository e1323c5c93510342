"""Reading back what W&B's client wrote to disk while offline.

A .wandb file is seven bytes of header and then a LevelDB log: blocks of 32 KiB holding records of
a checksum (4 bytes), a length (2) and a kind (1: whole, 2 to 4: first, middle and last part). Each
record is a message of W&B's own protocol.
https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768


@dataclass
class OfflineRun:
    """What `wandb sync` would upload."""

    id: str = ""
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def records(path: Path) -> list[Any]:
    """Every record of a .wandb file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    result, part, position = [], b"", 7
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if left < 7 or kind == 0:  # the rest of a block is padding
            position += left
            continue
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(part)
            result.append(record)
            part = b""
    return result


def read_offline_run(folder: Path) -> OfflineRun:
    """The one .wandb file in an offline-run-* folder."""
    (path,) = folder.glob("*.wandb")
    run = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id = record.run.run_id or run.id
            run.project = record.run.project or run.project
            run.name = record.run.display_name or run.name
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "artifact":
            run.artifacts[record.artifact.name] = record.artifact
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
