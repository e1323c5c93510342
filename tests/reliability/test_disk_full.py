"""A disk that fills up during a save: the checkpoint before it is whole, and the message clear."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.base.disk import is_disk_full
from posttrain.run.checkpoint import CheckpointStore, verify
from tests.reliability.inside import succeed
from tests.reliability.test_interruptions import arguments, start, wait_for

MB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        result = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if result.returncode:
        pytest.skip(f"may not mount a small file system: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave(disk: Path, free: int) -> None:
    """Fill the disk with ballast until `free` bytes are left."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    assert shutil.disk_usage(disk).free <= free


def save(store: CheckpointStore, step: int) -> Path:
    """Write what the trainer writes, with the same libraries, and publish it."""
    import torch
    from safetensors.torch import save_file

    written = store.staging / f"checkpoint-{step}"
    written.mkdir(parents=True)
    adapter = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(adapter.parameters())
    adapter(torch.ones(256)).sum().backward()
    optimizer.step()
    save_file({"weight": adapter.weight.detach()}, written / "adapter_model.safetensors")
    torch.save(optimizer.state_dict(), written / "optimizer.pt")
    torch.save({"cpu": torch.random.get_rng_state()}, written / "rng_state.pth")
    log = [{"loss": float(n)} for n in range(2000)]
    (written / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return store.publish(written, step, {"settings": {}}, keep=1)


def fails_for_want_of_space(store: CheckpointStore) -> bool:
    """Whether a save fails, and is seen to have failed for the disk.

    The exception must not outlive this: its traceback holds torch's file open, and so its space.
    """
    try:
        save(store, 2)
    except Exception as error:
        return is_disk_full(error, store.folder)
    return False


def test_ten_offsets_of_a_save(disk: Path) -> None:
    store = CheckpointStore(disk / "checkpoints")
    store.folder.mkdir()
    before = shutil.disk_usage(disk).free
    good = save(store, 1)
    size = before - shutil.disk_usage(disk).free
    assert size > 800_000
    for number in range(10):
        # The last one ends within the manifest, which is written last.
        leave(disk, size * number // 10 if number < 9 else size - 8192)
        assert fails_for_want_of_space(store)
        (disk / "ballast").unlink()
        assert store.newest() == good and verify(good) is None
        assert [path.name for path in store.folder.iterdir()] == [good.name]
    assert verify(save(store, 2)) is None and not good.exists()


@pytest.mark.long
@pytest.mark.parametrize("script", ["grpo", "dpo"])
def test_a_run_whose_disk_fills_up(disk: Path, script: str) -> None:
    """It stops with exit 2, and the same command goes on once there is room."""
    run = disk / "run"
    process = start(script, run, "training.max_steps=40")
    first = run / "checkpoints" / "step-000002"
    wait_for(process, lambda: (first / "manifest.json").exists())
    leave(disk, MB)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "the disk is full" in error and "Traceback" not in error
    kept = sorted((run / "checkpoints").glob("step-*"))
    assert kept and not any(verify(path) for path in kept)
    (disk / "ballast").unlink()
    steps = int(kept[-1].name[5:]) + 2
    more = [f"training.max_steps={steps}", "--resume-anyway"]
    succeed(script, *arguments(script, run, *more))
    assert (run / "adapter" / "adapter_model.safetensors").exists()
