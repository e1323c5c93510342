"""In float32 the card gives the numbers of the machine without one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT
from tests.pretend_gpu import CARD, SITE
from tests.reliability.inside import adapter, leave_with, rows
from tests.reliability.inside import arguments as few_steps

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = ["training.max_steps=3", "training.save_steps=3"]
SAME = {
    "dpo": ("loss", "grad_norm", "rewards/margins", "logps/chosen", "num_tokens"),
    "sft": ("loss", "grad_norm"),  # Unsloth's SFT trainer counts no tokens
    "grpo": ("loss", "grad_norm", "reward", "reward_std", "completions/mean_length", "num_tokens"),
}
EVALUATION = {
    "dpo": "evaluation={limit: 16, replies: 8, max_new_tokens: 40, temperature: 0.0}",
    "grpo": "evaluation={limit: 16, max_new_tokens: 60}",
    "sft": "evaluation={limit: 16, max_new_tokens: 60}",
}


def without_card() -> dict[str, str]:
    path = os.environ["PYTHONPATH"].split(os.pathsep)
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("PRETEND_", "UNSLOTH_", "TRITON_", "TORCHDYNAMO_"))
    }
    kept.pop(CARD, None)
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in path if p != str(SITE))}


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
def test_three_steps_and_greedy_replies(name: str, more: list[str], tmp_path: Path) -> None:
    here, there = tmp_path / "card", tmp_path / "cpu"
    overrides = [*STEPS, EVALUATION[name], *more]
    assert leave_with(name, here, *overrides) == 0
    script = str(ROOT / "scripts" / f"{name}.py")
    command = [sys.executable, script, *few_steps(name, there, *overrides)]
    done = subprocess.run(command, env=without_card(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "No GPU here" in done.stdout
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
    saved = {name: json.loads((run / "adapter" / name).read_text()) for name in names}
    saved["tokenizer_config.json"].pop("added_tokens_decoder", None)
    saved["adapter_config.json"].pop("auto_mapping")
    saved["adapter_config.json"]["target_modules"].sort()
    return saved


def steps(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for line in lines if "loss" in (row := json.loads(line))][:3]
