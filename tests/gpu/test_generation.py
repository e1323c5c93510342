"""What the policy writes and computes on a GPU: padding, merging."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.render import render
from posttrain.model import inference, pretrained, runtime
from posttrain.model.device import Device
from posttrain.settings import Evaluation
from tests.e2e import trainers
from tests.helpers import DEMO_MODEL, demo_settings

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def device() -> Device:
    return runtime.start(verbose=False, threads=None)


@pytest.fixture(scope="module")
def requested() -> list[Any]:
    return trainers.requests(64)


@pytest.mark.parametrize(("dtype", "same"), [("float32", 64), ("bfloat16", 51), ("float16", 51)])
def test_left_padded_batch_writes_what_a_single_row_writes(
    dtype: str, same: int, requested: list[Any]
) -> None:
    """In 16 bits a tie may fall the other way now and then: at least four in five are the same."""
    loaded = pretrained.load_for_scoring(str(DEMO_MODEL), False, dtype, 512)
    one, many = (
        inference.generator(*loaded, Evaluation(batch_size=size, max_new_tokens=64), 0)(requested)
        for size in (1, 32)
    )
    assert sum(a.text == b.text for a, b in zip(one, many, strict=True)) >= same
    assert len({reply.text for reply in many}) > 20


def test_merged_model_computes_what_the_adapter_computes(
    tmp_path: Path, requested: list[Any]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = trainers.load(demo_settings("grpo", "model.dtype=bfloat16"))
    trainers.move(model)
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
