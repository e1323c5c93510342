"""Data parallel under `accelerate launch`: several processes, one run folder.

Every process runs the complete script on its own card. Only the first one prints and owns the run
folder; each other one writes to a temporary folder (see RunFolder), so that few modules depend on
which process they are in.
"""

import os
import tempfile
from pathlib import Path


def processes() -> int:
    """How many processes train together, as the launcher sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def own_folder(shared: Path) -> Path:
    """`shared` in the main process, in any other a path in its temporary folder."""
    if is_main():
        return shared
    scratch = tempfile.TemporaryDirectory(prefix=f"{shared.name}-process-")
    _SCRATCH.append(scratch)  # removed when the process ends
    return Path(scratch.name) / shared.name


_SCRATCH: list[tempfile.TemporaryDirectory[str]] = []


def main_checkpoint(path: Path | None) -> Path | None:
    """The checkpoint that the main process resumes from, in every process.

    All must call it, once a trainer is built.
    """
    if processes() == 1:
        return path
    import torch

    # accelerate calls the CPU of several processes "cpu:0", where torch cannot load anything to.
    torch.serialization.register_package(
        0, lambda _: None, lambda storage, where: storage if where == "cpu:0" else None
    )
    shared: list[Path | None] = [path]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def highest(value: int) -> int:
    """The largest of all processes' values, in every process. All must call it."""
    if processes() == 1:
        return value
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return int(shared)


def barrier() -> None:
    """Wait until every process is here."""
    highest(0)
