"""A run killed on a GPU goes on as the run that was not, but for what its kernels round."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.inside import adapter, steps, succeed
from tests.reliability.test_interruptions import STEPS, arguments, start, wait_for

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


def weights(run: Path) -> Any:
    """All of the adapter's weights in one vector."""
    import torch

    actual = adapter(run)
    return torch.cat([actual[name].float().flatten() for name in sorted(actual)])


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_killed_run_goes_on(name: str, tmp_path: Path) -> None:
    complete, cut = tmp_path / "complete", tmp_path / "cut"
    succeed(name, *arguments(name, complete))
    process = start(name, cut)
    wait_for(process, (cut / "checkpoints" / "step-000002" / "manifest.json").exists)
    process.kill()
    process.communicate()
    succeed(name, *arguments(name, cut))

    own, other = steps(cut), steps(complete)
    assert [row["step"] for row in own] == list(range(1, STEPS + 1))
    if name == "dpo":  # the same pairs in the same order: the same path but for rounding
        for a, b in zip(own, other, strict=True):
            assert math.isclose(a["loss"], b["loss"], rel_tol=0.02), a["step"]
        distance = float((weights(cut) - weights(complete)).norm() / weights(complete).norm())
        assert distance < 0.02
        return
    # Sampled completions part at the first token that rounds otherwise, so means are compared:
    # 32 completions a step, four steps after the checkpoint.
    for key, band in (("reward", 0.4), ("completions/mean_length", 6.0)):
        late, reference = (
            sum(row[key] for row in rows[2:]) / len(rows[2:]) for rows in (own, other)
        )
        assert abs(late - reference) < band, key
