"""What the benchmark does to generation, on a CPU."""

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model import policy
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from tests.bench import lengths
from tests.bench.lengths import force_lengths
from tests.helpers import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = ROOT / "configs" / "grpo_demo.yaml"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    settings = load_settings(GRPOSettings, CONFIG)
    return policy.load(settings.model, settings.lora, settings.training, verbose=False)


@pytest.fixture
def unforced() -> Iterator[None]:
    from transformers.generation.utils import GenerationMixin

    original = GenerationMixin._get_logits_processor
    yield
    GenerationMixin._get_logits_processor = original


def test_rows_end_where_they_are_made_to(loaded: tuple[Any, Any], unforced: None) -> None:
    import torch

    model, tokenizer = loaded
    wanted = [3, 17, 1, 40, 9, 25]  # 40 is over the limit of 32: cut, without an end token
    force_lengths(cycle(wanted), [tokenizer.eos_token_id])
    prompts = tokenizer(
        ["1 + 1 =", "A longer prompt than the others", "x", "y", "z", "2 2 2"],
        return_tensors="pt",
        padding=True,
    )
    for sampled in (True, False):
        torch.manual_seed(0)
        output = model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=32,
            do_sample=sampled,
        )
        new = output[:, prompts["input_ids"].shape[1] :].tolist()
        for row, length in zip(new, islice(cycle(wanted), len(new)), strict=True):
            ended = tokenizer.eos_token_id in row
            assert ended == (length <= 32)
            assert (row.index(tokenizer.eos_token_id) + 1 if ended else len(row)) == min(length, 32)


def test_settings_of_decoding() -> None:
    """Without a GPU or vLLM: nothing, and an error that says what to do."""

    def load(*overrides: str) -> None:
        settings = load_settings(GRPOSettings, CONFIG, list(overrides))
        policy.load(settings.model, settings.lora, settings.training, verbose=False)

    load("model.fast_inference=auto")
    with pytest.raises(ConfigError, match="here is none; use auto or never"):
        load("model.fast_inference=always")


def test_rows_that_a_generation_left_off_keep_their_length() -> None:
    """Lengths 2, 5 and 6, left off after 3 tokens; then the rows change places."""
    import torch

    def write(processor: lengths.ForcedLengths, ids: torch.Tensor, steps: int) -> torch.Tensor:
        for step in range(steps):
            scores = processor(ids, torch.zeros(len(ids), 50))
            own = (ids[:, 0] + 7 * step) % 40 + 5  # what each row would write by itself
            ended = scores[:, 1] == 0
            ids = torch.cat([ids, torch.where(ended, 1, own)[:, None]], 1)
        return ids

    stream = iter([2, 5, 6, 9])
    prompts = torch.tensor([[0, 2], [10, 2], [20, 2]])
    first = lengths.ForcedLengths(2, stream, [1], None)
    ids = write(first, prompts, 3)
    assert (ids == 1).nonzero().tolist() == [[0, 3]]
    rest = ids[[2, 1]]
    second = lengths.ForcedLengths(5, stream, [1], first)
    ids = write(second, torch.cat([rest, torch.tensor([[30, 2, 8, 8, 8]])]), 3)
    assert second.lengths == [3, 2, 9]
    assert (ids == 1).nonzero().tolist() == [[0, 7], [1, 6]]
