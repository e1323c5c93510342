"""Runs of the scripts inside this process, so that a test can reach into a step of theirs.

What is injected is injected into the real thing: an error, a NaN or a signal at a chosen moment of
a training step of the demo model.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.process import run_main
from posttrain.model import policy
from scripts import dpo, grpo
from tests.helpers import ROOT

MAIN = {"dpo": dpo.main, "grpo": grpo.main}
SMALL = {
    "dpo": ["evaluation={limit: 8, replies: 2, max_new_tokens: 8}", "data.train.limit=300"],
    "grpo": ["evaluation={limit: 4, max_new_tokens: 8}", "training.max_completion_length=24"],
}
OnForward = Callable[[Any, Any], Any]
"""(rows going through the model, hidden states) -> None, or the states to use instead."""


def arguments(name: str, run: Path, *overrides: str) -> list[str]:
    """A run of few small steps that is deterministic: fp32, one thread."""
    return [
        *("--config", str(ROOT / "configs" / f"{name}_demo.yaml"), "--output", str(run)),
        *("run.threads=1", "training.max_steps=4", "training.per_device_train_batch_size=16"),
        *("training.save_steps=2", *SMALL[name], *overrides),
    ]


def leave_with(name: str, run: Path, *overrides: str) -> int:
    """The exit code of a run, given as to the command line."""
    with pytest.raises(SystemExit) as left:
        run_main(lambda: MAIN[name](arguments(name, run, *overrides)))
    return int(left.value.code or 0)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run / "metrics.jsonl") if "loss" in row]


def adapter(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """What a run did to the signal handlers and the output ends with the test."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: signal.getsignal(number) for number in signals}
    streams = sys.stdout, sys.stderr
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    sys.stdout, sys.stderr = streams


@pytest.fixture
def on_forward(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`on_forward(f)`: f is called after each pass through the policy's first layer.

    An error in the backward pass there comes when the layers above have their gradients already.
    With `last=True` it is called at the end of the last layer.
    """

    def install(function: OnForward, last: bool = False) -> None:
        load = policy.load

        def loaded(*given: Any) -> Any:
            model, tokenizer = load(*given)
            inner = model.get_base_model().model
            layer = inner.norm if last else inner.layers[0]
            layer.register_forward_hook(lambda _, __, states: function(states.shape[0], states))
            return model, tokenizer

        monkeypatch.setattr(policy, "load", loaded)

    return install


def learning() -> bool:
    """Whether the pass at hand is one that will be differentiated."""
    import torch

    return torch.is_grad_enabled()
