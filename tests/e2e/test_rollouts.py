"""Sampling from merged weights and reading prompts once change the cost, not the result."""

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.render import render, token_ids
from posttrain.model import merged, rollouts
from posttrain.model.prompts import Reader, Rows, common_start, continue_rows
from posttrain.train import grpo_trainer
from posttrain.train.arguments import build_arguments
from scripts import grpo
from tests.e2e import trainers
from tests.helpers import DEMO_MODEL, Capsys, demo_settings

KINDS = {
    "lora": [],
    "rslora": ["lora.use_rslora=true"],
    "dora": ["lora.use_dora=true"],
    "4 bits": ["model.load_in_4bit=true", "model.dtype=bfloat16"],
    "4 bits dora": ["model.load_in_4bit=true", "model.dtype=bfloat16", "lora.use_dora=true"],
}


def load(*overrides: str) -> tuple[Any, Any]:
    """A policy whose adapter has an effect, and its tokenizer."""
    loaded = trainers.load(demo_settings("grpo", *overrides))
    trainers.move(loaded[0])
    return loaded


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load()


def prompts_of(tokenizer: Any, problems: int, times: int) -> list[list[int]]:
    """Problems, so many times each, as GRPO has them."""
    settings = demo_settings("grpo")
    chosen = trainers.rows_of("grpo", settings)[:problems]
    rows = [grpo.reward_row(problem, settings.prompt) for problem in chosen]
    ids = token_ids(tokenizer, [render(tokenizer, row["prompt"]) for row in rows])
    return [prompt for prompt in ids for _ in range(times)]


@pytest.fixture(scope="module")
def prompts(loaded: tuple[Any, Any]) -> list[list[int]]:
    return prompts_of(loaded[1], 12, 4)


def padded(prompts: list[list[int]], padding: int) -> dict[str, Any]:
    """The arguments of generate() as trl gives them."""
    import torch

    width = max(map(len, prompts))
    rows = [
        ([padding] * (width - len(p)) + p, [0] * (width - len(p)) + [1] * len(p)) for p in prompts
    ]
    ids, mask = (torch.tensor(part) for part in zip(*rows, strict=True))
    return {"input_ids": ids, "attention_mask": mask}


def generation(tokenizer: Any, **options: Any) -> Any:
    from transformers import GenerationConfig

    options = {"max_new_tokens": 24, "do_sample": False, **options}
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **options
    )


def logits(model: Any, prompts: list[list[int]]) -> Any:
    import torch

    with torch.no_grad():
        return torch.stack([model(torch.tensor([p])).logits[0, -1].float() for p in prompts])


def lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


# --- merged weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_weight_is_what_peft_merges(kind: str, prompts: list[list[int]]) -> None:
    """In float32 to its rounding; 4-bit weights are unpacked, summed and rounded once. The merged
    model is the adapted one."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    model, _ = load(*KINDS[kind])
    layers = lora_layers(model)
    assert len(layers) == 7 * model.config.num_hidden_layers
    for layer in layers.values():
        result = merged.merged_weight(layer)
        base = dequantize_module_weight(layer.get_base_layer()).float()
        if kind == "4 bits":
            expected = base + layer.get_delta_weight("default")
        elif kind == "4 bits dora":
            summed = base + layer.get_delta_weight("default")
            lengths = layer.lora_magnitude_vector["default"].weight
            expected = summed * (lengths / summed.norm(dim=1))[:, None]
        else:
            merging = copy.deepcopy(layer)
            merging.merge(safe_merge=True)
            expected = merging.get_base_layer().weight
        assert result.dtype == torch.float32
        assert torch.allclose(result, expected, atol=1e-6, rtol=1e-5)
        assert (result - base).abs().max() > 1e-3, "the adapter changes it"
    model.eval()
    some = prompts[::4]
    adapted = logits(model, some)
    with model.disable_adapter():
        base = logits(model, some)
    with merged.sampling_weights(model):
        assert not lora_layers(model)
        result = logits(model, some)
    assert torch.equal(logits(model, some), adapted)
    effect = (adapted - base).abs().max()
    limit = 0.1 if "4 bits" in kind else 1e-4  # of bfloat16, at every layer
    assert (result - adapted).abs().max() < limit * effect


def test_layers_weights_and_modes_are_as_before(loaded: tuple[Any, Any]) -> None:
    import torch

    model, _ = loaded
    model.train()
    layers = lora_layers(model)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for error in (None, KeyboardInterrupt, torch.OutOfMemoryError):
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        with expected, merged.sampling_weights(model):
            assert not lora_layers(model)
            model.eval()
            model.train()
            if error:
                raise error
        again = lora_layers(model)
        assert list(again) == list(layers)
        assert all(again[name] is layer for name, layer in layers.items())
        assert all(layer.training for layer in layers.values())
        assert dict(model.named_parameters()).keys() == weights.keys()
        assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    model.eval()
    with merged.sampling_weights(model):
        model.train()
    assert all(module.training for module in model.modules())


def test_a_signal_while_the_layers_are_put_back(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes once: the checkpoint that follows holds every layer."""
    model, _ = loaded
    layers, put_back = lora_layers(model), merged.MergedWeights._put_back
    signals = iter([KeyboardInterrupt])

    def interrupted(weights: merged.MergedWeights) -> None:
        for signal in signals:
            raise signal
        put_back(weights)

    monkeypatch.setattr(merged.MergedWeights, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt), merged.sampling_weights(model):
        assert not lora_layers(model)
    assert lora_layers(model) == layers


def test_the_memory_stays_at_its_addresses_only_where_it_is_kept(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    weights = merged.MergedWeights(model)

    def addresses(keep: bool) -> list[int]:
        with weights.in_place(keep):
            result = [m.weight.data_ptr() for n, m in model.named_modules() if n.endswith("_proj")]
        return result

    assert addresses(keep=True) == addresses(keep=True)
    assert weights._linears
    addresses(keep=False)
    assert not weights._linears


def test_merged_weights_follow_the_training(
    loaded: tuple[Any, Any], prompts: list[list[int]]
) -> None:
    import torch

    model, _ = loaded
    model.eval()
    with merged.sampling_weights(model):
        before = logits(model, prompts[:1])
    layer = next(iter(lora_layers(model).values()))
    with torch.no_grad():
        layer.lora_B["default"].weight.add_(0.1)
    try:
        with merged.sampling_weights(model):
            after = logits(model, prompts[:1])
        assert (
            (after - logits(model, prompts[:1])).abs().max() < 1e-4 < (after - before).abs().max()
        )
    finally:
        with torch.no_grad():
            layer.lora_B["default"].weight.sub_(0.1)


def test_the_reference_is_not_merged(loaded: tuple[Any, Any], prompts: list[list[int]]) -> None:
    import torch

    model, _ = loaded
    model.eval()
    with model.disable_adapter():
        reference = logits(model, prompts[:2])
        with merged.sampling_weights(model):
            assert torch.equal(logits(model, prompts[:2]), reference)


def test_auto_leaves_the_memory_to_what_needs_it(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    model, _ = loaded
    needed = merged.MergedWeights(model).bytes
    assert needed == sum(4 * layer.weight.numel() for layer in lora_layers(model).values())
    monkeypatch.setattr(merged, "_CHOSEN", {})
    for choice, free, used in (
        ("auto", 4 * needed, True),
        ("auto", 4 * needed - 1, False),
        ("merged", 0, True),
        ("adapter", 100 * needed, False),
    ):
        merged._CHOSEN.clear()
        monkeypatch.setattr(merged, "free_bytes", lambda _, free=free: free)
        merged.choose_weights(model, choice, keep=True)
        assert (model in merged._CHOSEN) == used
        output = capsys.readouterr().out
        assert ("Rollouts are sampled from merged weights" in output) == used
        assert ("note: sampling through the adapter" in output) == (not used and choice == "auto")


def test_an_adapter_that_cannot_be_merged(capsys: Capsys) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    model = get_peft_model(base, LoraConfig(target_modules=["embed_tokens", "q_proj"]))
    merged.choose_weights(model, "merged", keep=True)
    assert "cannot be merged: embed_tokens is not a linear layer" in capsys.readouterr().out
    assert model not in merged._CHOSEN


# --- prompts read once ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "options"),
    [(1.0, {"top_k": 0}), (0.7, {"top_k": 0}), (1.0, {"top_p": 0.9, "repetition_penalty": 1.2})],
)
def test_tokens_are_those_of_the_models_own_generate(
    loaded: tuple[Any, Any], prompts: list[list[int]], temperature: float, options: dict[str, Any]
) -> None:
    """Whole prompts in one batch, sampled by transformers, its random numbers the same."""
    import torch

    model, tokenizer = loaded
    model.eval()
    config = generation(tokenizer, do_sample=True, temperature=temperature, **options)
    complete = padded(prompts, tokenizer.pad_token_id)
    own = vars(model).get("generate")
    torch.manual_seed(3)
    expected = model.generate(**complete, generation_config=config)
    ended = (expected == tokenizer.eos_token_id)[:, -20:-1].any(1)
    assert ended.sum() > 4 and len({tuple(row) for row in expected.tolist()}) > 20
    after = torch.get_rng_state()
    torch.manual_seed(3)
    plain = "top_p" not in options
    with rollouts.cheaper_rollouts(model, temperature, plain=plain) as noted:
        result = model.generate(**complete, generation_config=config)
    assert torch.equal(result, expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert len(noted) == len(prompts)
    assert vars(model).get("generate") is own


def passes_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the token ids of each pass from now on."""
    passes: list[tuple[int, ...]] = []
    embed = model.get_input_embeddings()
    forward = embed.forward
    monkeypatch.setattr(
        embed, "forward", lambda ids: (passes.append(tuple(ids.shape)), forward(ids))[1]
    )
    return passes


def test_fewer_tokens_go_through_the_model(
    loaded: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are read once, and completions that have ended are not continued."""
    model, tokenizer = loaded
    model.eval()
    passes = passes_of(model, monkeypatch)
    config = generation(tokenizer, do_sample=True, top_k=0, max_new_tokens=40)
    with rollouts.cheaper_rollouts(model, 1.0, plain=True):
        model.generate(**padded(prompts, tokenizer.pad_token_id), generation_config=config)
    read = sum(rows * tokens for rows, tokens in passes if tokens > 1)
    assert read < 0.25 * sum(map(len, prompts))
    rows = [rows for rows, tokens in passes if tokens == 1]
    assert rows[0] == len(prompts) and rows == sorted(rows, reverse=True)
    assert rows[-1] <= 0.75 * len(prompts)


@pytest.mark.parametrize(
    ("override", "plain"),
    [
        ("temperature=0.7", True),
        ("extra.top_p=0.9", False),
        ("extra.top_k=20", False),
        ("extra.min_p=0.1", False),
        ("extra.repetition_penalty=1.1", False),
        ("extra.generation_kwargs={no_repeat_ngram_size: 3}", False),
    ],
)
def test_what_is_sampled_in_another_way_is_left_to_the_library(override: str, plain: bool) -> None:
    from trl import GRPOConfig

    training = demo_settings("grpo", f"training.{override}").training
    arguments, _ = build_arguments(GRPOConfig, training, {"output_dir": "unused"}, verbose=True)
    assert grpo_trainer.samples_plainly(arguments) == plain


def test_what_prompts_share_is_read_once(
    loaded: tuple[Any, Any], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    passes = passes_of(model, monkeypatch)
    rows = Reader(model, prompts, tokenizer.pad_token_id).read(prompts)
    different = [prompts[i] for i in range(0, len(prompts), 4)]
    start = common_start([tuple(p) for p in different])
    assert start > 30, "the system turn"
    longest = max(map(len, different)) - start
    tokens = sum(map(math.prod, passes))
    assert tokens == start + len(different) * (longest - 1)
    assert tokens < 0.25 * len(prompts) * (start + longest)
    assert rows.ids.shape[0] == len(prompts)


def test_rows_leave_and_join_without_being_read_again(
    loaded: tuple[Any, Any], prompts: list[list[int]]
) -> None:
    """Four rows are continued, two of them leave, others join: all end as if left alone."""
    import torch

    model, tokenizer = loaded
    model.eval()
    padding = tokenizer.pad_token_id
    alone = [
        model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=generation(tokenizer, min_new_tokens=24),
        )[0, len(prompt) :].tolist()
        for prompt in prompts[::4]
    ]

    def go_on(rows: Rows, tokens: int) -> tuple[list[list[int]], Rows]:
        config = generation(tokenizer, max_new_tokens=tokens, min_new_tokens=tokens)
        written = continue_rows(model.generate, rows, generation_config=config)
        assert written is not None
        return written.ids[:, rows.ids.shape[1] :].tolist(), written

    reader = Reader(model, prompts, padding)
    rows = reader.read([prompts[4 * i] for i in (0, 1, 2, 3)])
    first, rows = go_on(rows, 10)
    rows = rows.keep([3, 1])
    assert rows.mask.any(0).all(), "columns of padding alone are gone"
    joined = rows.join(reader.read([prompts[4 * i] for i in (4, 5, 6)]))
    second, joined = go_on(joined, 14)
    assert joined.mask.sum(1).tolist()[:2] == [len(prompts[4 * i]) + 24 for i in (3, 1)]
    assert first == [alone[i][:10] for i in (0, 1, 2, 3)]
    assert second[:2] == [alone[i][10:24] for i in (3, 1)]
    assert second[2:] == [alone[i][:14] for i in (4, 5, 6)]


def test_common_start() -> None:
    assert common_start([(1, 2, 3), (1, 2, 4)]) == 2
    assert common_start([(1, 2, 3), (1, 2)]) == 1
    assert common_start([(1, 2), (3, 4)]) == 0
    assert common_start([(7, 8, 9)]) == 2


def test_a_window_of_attention_is_not_narrowed_by_padding(prompts: list[list[int]]) -> None:
    """Where layers see only so many columns, prompts are read whole."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=1000,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        )
    )
    rows = Reader(model, prompts[:8], padding=0).read(prompts[:8])
    assert rows.cache == []
    assert rows.mask.sum(1).tolist() == [len(prompt) for prompt in prompts[:8]]


# --- what tokens were sampled with ----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_noted_log_probs_are_the_policys(
    loaded: tuple[Any, Any], prompts: list[list[int]], temperature: float
) -> None:
    import torch

    model, tokenizer = loaded
    model.eval()
    config = generation(tokenizer, do_sample=True, temperature=temperature, top_k=0)
    torch.manual_seed(5)
    with rollouts.cheaper_rollouts(model, temperature, plain=True) as noted:
        result = model.generate(
            **padded(prompts[:8], tokenizer.pad_token_id), generation_config=config
        )
    width = max(map(len, prompts[:8]))
    for prompt, row, log_probs in zip(prompts[:8], result[:, width:].tolist(), noted, strict=True):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        with torch.no_grad():
            scores = model(torch.tensor([prompt + row[:end]])).logits[0, len(prompt) - 1 : -1]
        expected = (scores / temperature).log_softmax(-1)[range(end), row[:end]]
        assert torch.allclose(torch.tensor(log_probs[:end]), expected, atol=1e-4)


# --- in training ----------------------------------------------------------------------------------


class Trained:
    """Two steps of GRPO on the demo; what was logged, sampled and learnt."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        short = ("training.max_steps=2", "training.per_device_train_batch_size=16")
        given = (*short, "training.save_steps=100", *overrides)
        built = trainers.build("grpo", folder, *given, count=64)
        self.trainer = built.trainer
        built.watch()
        self.completions: list[Any] = []
        generate = self.trainer._generate_single_turn

        def recording(*arguments: Any, **named: Any) -> Any:
            out = generate(*arguments, **named)
            self.completions.append(out[0])
            return out

        self.trainer._generate_single_turn = recording
        self.trainer.train()
        self.log = trainers.logged(self.trainer)
        self.adapter = {
            name: weight.detach().clone()
            for name, weight in built.model.named_parameters()
            if weight.requires_grad
        }


@pytest.mark.parametrize(
    "others",
    [
        "generation_kwargs={num_beams: 2, length_penalty: -0.1}",
        "generation_kwargs={do_sample: false}",
        "cache_implementation=static",
        "repetition_penalty=1.1",
    ],
)
def test_any_other_way_of_generating_trains(others: str, tmp_path: Path) -> None:
    """Beams multiply the rows of a batch: they are not what the rollouts here can note."""
    small = ["training.max_completion_length=8", "training.max_steps=1"]
    trained = Trained(tmp_path, f"training.extra.{others}", *small)
    assert len(trained.log) == 1 and len(trained.completions[0]) == 16
    noted = "sampling/sampling_logp_difference/mean" in trained.log[0]
    assert noted == ("generation_kwargs" not in others)


def test_training_on_merged_rollouts_is_bitwise_the_same(tmp_path: Path) -> None:
    """The difference is logged, and is that of float32."""
    import torch

    swapped = Trained(tmp_path / "merged", "model.rollout_weights=merged")
    adapter = Trained(tmp_path / "adapter", "model.rollout_weights=adapter")
    assert swapped.trainer.model in merged._CHOSEN
    assert adapter.trainer.model not in merged._CHOSEN
    assert swapped.completions == adapter.completions
    assert [row["loss"] for row in swapped.log] == [row["loss"] for row in adapter.log]
    assert any(row["loss"] for row in swapped.log)
    assert all(torch.equal(w, adapter.adapter[name]) for name, w in swapped.adapter.items())
    difference = "sampling/sampling_logp_difference"
    for row in (*swapped.log, *adapter.log):
        assert 0 <= row[f"{difference}/mean"] <= row[f"{difference}/max"] < 1e-3


def test_a_wrong_merge_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts from other weights than those trained on: the difference is large and warned of."""
    right = merged.merged_weight
    monkeypatch.setattr(merged, "merged_weight", lambda layer: right(layer).roll(1, 0))
    health = ("health.patience=2", "health.stop_on=[]")  # such rollouts earn nothing
    trained = Trained(tmp_path / "wrong", "model.rollout_weights=merged", *health)
    assert all(row["sampling/sampling_logp_difference/mean"] > 0.1 for row in trained.log)
    events = (tmp_path / "wrong" / "run" / "health.jsonl").read_text(encoding="utf-8")
    assert "sampling" in events and "model.rollout_weights" in events
