"""What the benchmark does to generation, and the check that lets CUDA graphs in, on a CPU."""

from collections.abc import Iterator
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model import decode_graphs, policy
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


class Replayed:
    """Stands in for Unsloth's module: "graphs" that add `error` to every decoded logit."""

    def __init__(self, model: Any, error: float, replaying: bool = True) -> None:
        self._head, self._hook = model.get_output_embeddings(), None
        self._error, self._on, self._replaying = error, False, replaying
        self.state = SimpleNamespace(replays=0, disabled="capture failed")
        self._SUPPORTED_MODEL_TYPES = {"llama"}

    @property
    def ENABLED(self) -> bool | None:
        return self._on or None

    @ENABLED.setter
    def ENABLED(self, value: bool | None) -> None:
        self._on = bool(value)
        if self._hook:
            self._hook.remove()
            self._hook = None
        if value:
            self._hook = self._head.register_forward_hook(self._replay)

    def _replay(self, _: Any, __: Any, logits: Any) -> Any:
        self.state.replays += self._replaying
        wrong = logits.clone()
        wrong[-1, :, 7] += self._error  # one logit of one row
        return wrong

    def _states(self, _: Any) -> list[Any]:
        return [self.state]

    def release_for_training(self, _: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "replaying", "said"),
    [
        (0.0, True, None),
        (1e-4, True, "their logits are up to 0.0001 off"),
        (100.0, True, "other tokens than eager decoding"),
        (0.0, False, "did not use them: capture failed"),
    ],
)
@pytest.mark.parametrize("rows", decode_graphs.ROWS)
def test_graphs_that_differ_in_one_logit_are_found(
    loaded: tuple[Any, Any], error: float, replaying: bool, said: str | None, rows: int
) -> None:
    model, _ = loaded
    with policy.inference_mode(model):
        found = decode_graphs._difference(model, Replayed(model, error, replaying), rows)
    assert found is None if said is None else found is not None and said in found


def test_graphs_are_refused_without_a_gpu_and_nothing_is_left_behind(
    loaded: tuple[Any, Any],
) -> None:
    model, _ = loaded
    graphs = Replayed(model, 0.0)
    assert decode_graphs.admit_decode_graphs(model, graphs) == "it needs an NVIDIA GPU"
    assert {"llama"} == graphs._SUPPORTED_MODEL_TYPES


def test_noise_for_the_comparison_is_taken_back(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    factors = {name: w for name, w in model.named_parameters() if "lora_B" in name}
    before = {name: weight.detach().clone() for name, weight in factors.items()}
    with decode_graphs._adapter_noise(model):
        assert all(bool(weight.any()) for weight in factors.values())
    assert all(bool((weight == before[name]).all()) for name, weight in factors.items())


def test_settings_of_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a GPU or vLLM: a note, nothing, and an error that says what to do."""

    def load(*overrides: str) -> None:
        settings = load_settings(GRPOSettings, CONFIG, list(overrides))
        policy.load(settings.model, settings.lora, settings.training, verbose=False)

    load("model.decode_graphs=true", "model.fast_inference=auto")
    assert "CUDA graphs not used: it needs an NVIDIA GPU" in capsys.readouterr().out
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
