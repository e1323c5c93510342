"""What the policy writes and computes on a GPU: padding, merging."""

from pathlib import Path
from typing import Any

import pytest

from eval import PromptFormat, conversation
from eval.gsm8k import SYSTEM
from posttrain.data.problems import load_evaluation
from posttrain.data.render import render
from posttrain.model import inference, policy, pretrained, runtime
from posttrain.model.device import Device
from posttrain.settings import Evaluation, GRPOSettings, ProblemColumns, Source
from posttrain.settings import command as config
from tests.helpers import ROOT

MODEL = ROOT / "assets" / "demo_model"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def device() -> Device:
    return runtime.start(verbose=False, threads=None)


@pytest.fixture(scope="module")
def requested() -> list[Any]:
    source = Source(path=str(ROOT / "assets" / "demo_data" / "problems_test.jsonl"), limit=64)
    problems = load_evaluation(source, ProblemColumns())
    return [conversation(problem.question, PromptFormat(SYSTEM["en"])) for problem in problems]


@pytest.mark.parametrize(("dtype", "same"), [("float32", 64), ("bfloat16", 51), ("float16", 51)])
def test_left_padded_batch_writes_what_a_single_row_writes(
    dtype: str, same: int, requested: list[Any]
) -> None:
    """In 16 bits a tie may fall the other way now and then: at least four in five are the same."""
    loaded = pretrained.load_for_scoring(str(MODEL), False, dtype, 512)
    one, many = (
        inference.generator(*loaded, Evaluation(batch_size=size, max_new_tokens=64), 0)(requested)
        for size in (1, 32)
    )
    assert sum(a.text == b.text for a, b in zip(one, many, strict=True)) >= same
    assert len({reply.text for reply in many}) > 20


def load_policy(*overrides: str) -> tuple[Any, Any]:
    settings = config.load_settings(
        GRPOSettings, ROOT / "configs" / "grpo_demo.yaml", ["model.dtype=bfloat16", *overrides]
    )
    return policy.load(settings.model, settings.lora, settings.training, verbose=False)


def test_merged_model_computes_what_the_adapter_computes(
    tmp_path: Path, requested: list[Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_policy()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                noise = 0.05 * torch.randn(weight.shape, generator=generator)
                weight.copy_(noise.to(weight.device, weight.dtype))
    ids = tokenizer(render(tokenizer, requested[0]), return_tensors="pt")["input_ids"].cuda()
    with runtime.inference_mode(model):
        with_adapter = model(input_ids=ids).logits.float().log_softmax(-1)
        with model.disable_adapter():
            without = model(input_ids=ids).logits.float().log_softmax(-1)
    model.save_pretrained_merged(str(tmp_path), tokenizer, save_method="merged_16bit")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        result = merged(input_ids=ids).logits.float().log_softmax(-1)

    def apart(first: Any, second: Any) -> float:
        """Mean distance, over the positions, of the two distributions (total variation)."""
        return float(((first.exp() - second.exp()).abs().sum(-1) / 2).mean())

    assert apart(with_adapter, result) < 0.03
    assert apart(with_adapter, without) > 0.15  # the adapter does change something
