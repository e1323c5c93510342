"""In float32 the card gives the numbers of the machine without one."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.helpers import ROOT, read, rows
from tests.pretend_gpu import OUTSIDE, SITE
from tests.reliability.inside import adapter, leave_unreported, steps
from tests.reliability.inside import arguments as few_steps

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = ["training.max_steps=3", "training.save_steps=3"]
SAME = {
    "dpo": ("loss", "grad_norm", "rewards/margins", "logps/chosen", "num_tokens"),
    "sft": ("loss", "grad_norm"),  # Unsloth's SFT trainer counts no tokens
    "grpo": ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "num_tokens"),
}
EVALUATION = {
    "dpo": "evaluation={limit: 8, replies: 8, max_new_tokens: 40, temperature: 0.0}",
    "grpo": "evaluation={limit: 8, max_new_tokens: 40}",
    "sft": "evaluation={limit: 8, max_new_tokens: 40}",
}


def without_card() -> dict[str, str]:
    path = os.environ["PYTHONPATH"].split(os.pathsep)
    own = ("PRETEND_", "UNSLOTH_", "TRITON_", "TORCHDYNAMO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in path if p != str(SITE))}


@pytest.fixture(scope="module")
def cpu() -> warm.Server:
    """Starts processes that have no card; where there is one of the tests outside, by that."""
    server = warm.Server(without_card())
    server.path = Path(os.environ[OUTSIDE]) if OUTSIDE in os.environ else None
    return server


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list to which each trainer is added that trains."""
    from posttrain.train import loop

    seen: list[Any] = []
    real = loop.train
    monkeypatch.setattr(
        loop, "train", lambda trainer, *rest: (seen.append(trainer), real(trainer, *rest))[1]
    )
    return seen


def check_trainer(name: str, seen: list[Any], run: Path) -> None:
    """The one trainer of a float32 run is Unsloth's."""
    (trainer,) = seen
    names = [kind.__name__ for kind in type(trainer).__mro__]
    assert f"Unsloth{name.upper()}Trainer" in names and names[0] == f"Guarded{name.upper()}"
    assert "unsloth.models.llama" in sys.modules
    assert trainer.model.device.type == "cuda"
    used = read(run / "environment.json")
    assert "bf16" not in used["changed_arguments"]  # float32 was asked for and is what there is
    assert not (trainer.args.bf16 or trainer.args.fp16)


IN_PARTS = ["training.gradient_accumulation_steps=2", "training.steps_per_generation=1"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(("dpo", []), ("grpo", [])),
        pytest.param("sft", [], marks=pytest.mark.long),
        pytest.param("grpo", IN_PARTS, marks=pytest.mark.long),
    ],
    ids=["dpo", "grpo", "sft", "grpo sampled in parts"],
)
def test_three_steps_and_greedy_replies(
    name: str, more: list[str], cpu: warm.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the trainer that gives them is Unsloth's."""
    trainers = noted(monkeypatch)
    here, there = tmp_path / "card", tmp_path / "cpu"
    overrides = [*STEPS, EVALUATION[name], *more]
    assert leave_unreported(name, here, *overrides) == 0
    check_trainer(name, trainers, here)
    command = [str(ROOT / "scripts" / f"{name}.py"), *few_steps(name, there, *overrides)]
    process = cpu.popen(command, ROOT, without_card())
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]
    assert "No GPU here" in output
    for mine, other in zip(steps(here), steps(there), strict=True):
        for key in SAME[name]:
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6), (mine["step"], key)
    assert saved_beside_the_weights(here) == saved_beside_the_weights(there)
    weights, others = adapter(here), adapter(there)
    apart = math.sqrt(sum(float((weights[k] - others[k]).square().sum()) for k in others))
    size = math.sqrt(sum(float(others[k].square().sum()) for k in others))
    assert apart < 1e-3 * size
    file = "before_replies.jsonl" if name == "dpo" else "before.jsonl"
    texts = [
        [row["reply"] if "reply" in row else row["text"] for row in rows(run / "eval" / file)]
        for run in (here, there)
    ]
    assert texts[0] == texts[1] and len(set(texts[0])) > 4


def saved_beside_the_weights(run: Path) -> dict[str, Any]:
    """The adapter's configuration and tokenizer, without what Unsloth adds to them on a GPU.

    Both additions repeat what stands elsewhere: the class of the base model, and the special tokens
    of tokenizer.json. peft writes the target modules in the order of their hashes, which is another
    one in each process.
    """
    names = ("tokenizer.json", "tokenizer_config.json", "adapter_config.json")
    saved = {name: read(run / "adapter" / name) for name in names}
    saved["tokenizer_config.json"].pop("added_tokens_decoder", None)
    saved["adapter_config.json"].pop("auto_mapping")
    saved["adapter_config.json"]["target_modules"].sort()
    return saved
