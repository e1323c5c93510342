"""Generating replies and scoring given ones, on the demo model in float32."""

import copy
import functools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, Conversation
from posttrain.base.errors import HealthError
from posttrain.data.render import render
from posttrain.model import inference, pretrained, runtime
from posttrain.model.log_probs import pair_log_probs, reply_sequences, token_log_probs
from posttrain.model.prompts import Reader
from posttrain.settings import Evaluation
from rewards.answer import CLOSE, ends_with_answer
from tests.e2e import trainers
from tests.e2e.trainers import load, move, plain, rows_of
from tests.helpers import DEMO_MODEL, Capsys, demo_settings, make_qwen

Loaded = tuple[Any, Any]


def load_demo() -> Loaded:
    return pretrained.load_for_scoring(str(DEMO_MODEL), False, "float32", 512)


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return load_demo()


@pytest.fixture(scope="module")
def requested() -> list[Conversation]:
    return trainers.requests(48)


@pytest.fixture(scope="module")
def rambling(requested: list[Conversation]) -> Loaded:
    """The demo model with noise on its weights, whose replies are of very different lengths."""
    import torch

    model, tokenizer = load_demo()
    trained = [weight.detach().clone() for weight in model.parameters()]
    for seed in range(1, 9):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight, start in zip(model.parameters(), trained, strict=True):
                weight.copy_(start + start.std() * torch.randn_like(start))
        lengths = sorted(reply.tokens for reply in answer((model, tokenizer), requested))
        if lengths[12] <= 24 and lengths[-1] == 64:
            return model, tokenizer
    raise AssertionError("no noise makes replies of different lengths")


def answer(
    loaded: Loaded, conversations: Sequence[Conversation], seed: int = 0, **settings: Any
) -> list[Completion]:
    settings = {"batch_size": 32, "max_new_tokens": 64, **settings}
    return inference.generator(*loaded, Evaluation(**settings), seed)(conversations)


def by_hand(loaded: Loaded, conversations: Sequence[Conversation], limit: int) -> list[Completion]:
    """Greedy replies, a token at a time: no batch, no padding, no cache, no generate()."""
    import torch

    model, tokenizer = loaded
    replies = []
    for turns in conversations:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < limit and tokenizer.eos_token_id not in new:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + new]), use_cache=False).logits
            new.append(int(logits[0, -1].argmax()))
        text = tokenizer.decode(new, skip_special_tokens=True)
        replies.append(Completion(text, len(new), tokenizer.eos_token_id not in new))
    return replies


# --- memory ---------------------------------------------------------------------------------------


def peak_growth(work: Callable[[], object]) -> float:
    """MB by which the resident memory of this process grows at most while `work` runs."""

    def megabytes(field: str) -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in status if line.startswith(field))) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = megabytes("VmRSS")
    work()
    return megabytes("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux counts the peak")
@pytest.mark.parametrize("adapted", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_output_layer_is_not_copied_for_every_row(adapted: bool, tmp_path: Path) -> None:
    """In bfloat16, at the vocabulary of Qwen2.5: 19 MB a row, 622 MB for 32 rows."""
    import torch

    name = str(make_qwen(tmp_path, DEMO_MODEL, **trainers.TINY))
    if adapted:
        model, tokenizer = load(demo_settings("dpo", f"model.name={name}", "model.dtype=bfloat16"))
    else:
        model, tokenizer = pretrained.load_for_scoring(name, False, "bfloat16", 512)
        model.requires_grad_(False)
    assert model.dtype == torch.bfloat16
    prompts = torch.arange(32 * 40).reshape(32, 40).remainder(200) + 10

    def read() -> None:
        reader = Reader(model, prompts.tolist(), tokenizer.pad_token_id)
        reader.read(prompts.tolist())

    with runtime.inference_mode(model):
        for work in (
            read,
            lambda: model(input_ids=prompts, logits_to_keep=1),
            lambda: model.generate(input_ids=prompts, max_new_tokens=2),
        ):
            assert peak_growth(work) < 200


# --- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "rambling"])
def test_replies_do_not_depend_on_the_batch_size(
    model: str, requested: list[Conversation], request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    one, seven, many = (answer(loaded, requested[:24], batch_size=n) for n in (1, 7, 20))
    assert one == seven == many
    assert len({reply.text for reply in one}) > 10


@pytest.mark.parametrize("model", ["demo", "rambling"])
def test_replies_are_those_written_by_hand(
    model: str,
    requested: list[Conversation],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = request.getfixturevalue(model)
    expected = by_hand(loaded, requested[:12], limit=40)
    for pace in ((1, 0.1), (8, 0.25), (32, 0.5)):
        monkeypatch.setattr(inference, "KEPT_ROUND", pace)
        assert answer(loaded, requested[:12], batch_size=5, max_new_tokens=40) == expected
    if model == "rambling":
        assert len({reply.tokens for reply in expected}) > 4


def test_one_long_reply_does_not_hold_up_the_others(
    rambling: Loaded, requested: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once enough of a batch has ended, others take its place: fewer rows x steps."""
    model, _ = rambling
    work = 0
    forward = model.forward

    @functools.wraps(forward)  # transformers asks it for the names of its arguments
    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal work
        work += named["input_ids"].shape[0]
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", counting)
    actual = answer(rambling, requested, batch_size=16, max_new_tokens=100)
    rounds, work = work, 0
    monkeypatch.setattr(inference, "KEPT_ROUND", (1000, 1.0))
    assert answer(rambling, requested, batch_size=16, max_new_tokens=100) == actual
    assert 0 < rounds < 0.8 * work


def test_limit_on_and_beside_the_end_token(demo: Loaded, requested: list[Conversation]) -> None:
    for reply, turns in zip(answer(demo, requested[:4]), requested[:4], strict=True):
        assert not reply.truncated
        exact, cut, single = (
            answer(demo, [turns], max_new_tokens=limit)[0]
            for limit in (reply.tokens, reply.tokens - 1, 1)
        )
        assert exact == reply
        assert (cut.text, cut.tokens, cut.truncated) == (reply.text, reply.tokens - 1, True)
        assert (single.tokens, single.truncated) == (1, True)
        assert reply.text.startswith(single.text)


def test_padding_that_is_the_end_token(demo: Loaded, requested: list[Conversation]) -> None:
    """As with a tokenizer that has no padding token."""
    _, tokenizer = demo
    expected = answer(demo, requested[:16])
    assert answer(demo, []) == []
    padding = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        assert answer(demo, requested[:16]) == expected
    finally:
        tokenizer.pad_token = padding


# --- stopping at the answer -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless() -> Loaded:
    """The demo model with another end token: it continues after its answer."""
    model, tokenizer = load_demo()
    tokenizer.eos_token = "<|im_start|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def test_stop_at_answer_cuts_after_the_closing_tag(
    endless: Loaded, requested: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an element that was written in several rounds."""
    monkeypatch.setattr(inference, "KEPT_ROUND", (1, 0.02))
    going_on = answer(endless, requested, batch_size=48)
    stopped = answer(endless, requested, batch_size=7, stop_at_answer=True)
    assert answer(endless, requested, batch_size=48, stop_at_answer=True) == stopped
    assert sum(reply.truncated for reply in going_on) > 24
    closed = 0
    for long, short in zip(going_on, stopped, strict=True):
        if not ends_with_answer(long.text[: long.text.find(CLOSE) + len(CLOSE)]):
            continue  # a first element that is no answer does not stop the reply
        closed += 1
        assert short.text == long.text[: long.text.index(CLOSE) + len(CLOSE)]
        assert not short.truncated
        assert short.tokens < long.tokens
    assert closed > 24


def test_an_answer_closed_by_the_last_token_is_not_truncated(
    endless: Loaded, requested: list[Conversation]
) -> None:
    reply = answer(endless, requested[:1], stop_at_answer=True)[0]
    assert ends_with_answer(reply.text) and not reply.truncated
    exact = answer(endless, requested[:1], stop_at_answer=True, max_new_tokens=reply.tokens)[0]
    assert exact == reply
    cut = answer(endless, requested[:1], stop_at_answer=True, max_new_tokens=reply.tokens - 1)[0]
    assert cut.truncated


def test_stop_at_answer_where_the_model_stops_by_itself(
    demo: Loaded, requested: list[Conversation]
) -> None:
    plain, stopped = answer(demo, requested), answer(demo, requested, stop_at_answer=True)
    assert [r.text for r in stopped] == [r.text for r in plain]
    assert not any(r.truncated for r in stopped)
    assert [r.tokens for r in stopped] == [r.tokens - ends_with_answer(r.text) for r in plain]


# --- memory ---------------------------------------------------------------------------------------


def with_memory_for(rows: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make generate() run out of memory above `rows` rows; returns the sizes it will be asked."""
    import torch

    sizes: list[int] = []
    generate = model.generate

    def limited(*arguments: Any, **named: Any) -> Any:
        sizes.append(named["input_ids"].shape[0])
        if sizes[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(*arguments, **named)

    monkeypatch.setattr(model, "generate", limited)
    return sizes


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    rambling: Loaded, requested: list[Conversation], monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    expected = answer(rambling, requested)
    sizes = with_memory_for(8, rambling[0], monkeypatch)
    assert answer(rambling, requested, batch_size=48) == expected
    assert sizes[:4] == [48, 24, 12, 6] and max(sizes[4:]) <= 6
    assert capsys.readouterr().out.count("out of memory") == 3 <= math.log2(48)


def test_out_of_memory_with_few_requests_or_for_a_single_one(
    demo: Loaded, requested: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    expected = answer(demo, requested[:10])
    with monkeypatch.context() as patch:
        sizes = with_memory_for(8, demo[0], patch)
        assert answer(demo, requested[:10], batch_size=1024) == expected
    assert sizes == [10, 5, 5]
    sizes = with_memory_for(0, demo[0], monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        answer(demo, requested[:4])
    assert sizes == [4, 2, 1]


# --- sampling -------------------------------------------------------------------------------------


def test_sampling_is_seeded_and_leaves_the_random_state_alone(
    demo: Loaded, requested: list[Conversation]
) -> None:
    import torch

    torch.manual_seed(7)
    state, python_state = torch.get_rng_state(), random.getstate()
    first, again, other = (
        answer(demo, requested[:16], seed=seed, temperature=1.0) for seed in (1, 1, 2)
    )
    greedy = answer(demo, requested[:16])
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state
    assert first == again
    assert first != other
    assert first != greedy


def test_a_low_temperature_is_greedy(demo: Loaded, requested: list[Conversation]) -> None:
    assert answer(demo, requested[:8], temperature=1e-4) == answer(demo, requested[:8])


def test_sampling_draws_from_the_models_own_distribution(
    demo: Loaded, requested: list[Conversation]
) -> None:
    """First tokens of many samples against the softmax at that temperature: no top-k, no top-p."""
    import torch

    model, tokenizer = demo
    temperature = 1.5
    replies = answer(
        demo, [requested[0]] * 1000, batch_size=500, temperature=temperature, max_new_tokens=1
    )
    prompt = render(tokenizer, requested[0])
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probabilities = (model(input_ids=ids).logits[0, -1] / temperature).softmax(-1)
    for token in probabilities.topk(3).indices.tolist():
        p = float(probabilities[token])
        text = tokenizer.decode([token])
        actual = sum(reply.text == text for reply in replies) / len(replies)
        assert actual == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / len(replies)) + 1e-3)


# --- scoring given replies ------------------------------------------------------------------------


def test_a_token_of_prompt_and_reply_together_is_scored(demo: Loaded) -> None:
    tokenizer = copy.deepcopy(demo[1])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    ((ids, start),) = reply_sequences(tokenizer, [([{"role": "user", "content": "Wh"}], "at")])
    parts = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
    assert parts == ("W", "hat" + tokenizer.eos_token)


def test_pair_log_probs_equal_float64_and_do_not_depend_on_the_batch_size() -> None:
    import torch

    settings = demo_settings("dpo")
    pairs = rows_of("dpo", settings)[:24]
    model, tokenizer = load(settings)
    fresh = pair_log_probs(model, tokenizer, pairs, 8, reference=False)
    log_prob = functools.partial(trainers.log_prob, plain(dtype=torch.float64), tokenizer)
    expected = [(log_prob(p, p.chosen), log_prob(p, p.rejected)) for p in pairs]
    assert len({round(value) for pair in expected for value in pair}) > 5

    def same(actual: list[tuple[float, float]], other: list[tuple[float, float]]) -> bool:
        both = zip(actual, other, strict=True)
        return all(a == pytest.approx(b, abs=1e-3) for a, b in both)

    assert same(fresh, expected)  # a fresh adapter changes nothing
    move(model)
    sizes = {n: pair_log_probs(model, tokenizer, pairs, n, False) for n in (1, 5, 48)}
    assert same(sizes[1], sizes[5]) and same(sizes[1], sizes[48])
    assert not same(sizes[1], expected)
    reference = pair_log_probs(model, tokenizer, pairs, 5, reference=True)
    assert same(reference, expected)
    assert pair_log_probs(model, tokenizer, [], 5, reference=False) == []
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(HealthError, match=r"scoring pairs: a log-probability is not finite; lower"):
        pair_log_probs(model, tokenizer, pairs, 5, reference=False)


def test_scoring_holds_some_logits_at_a_time() -> None:
    """Of a batch with more logits than are computed at once; the same numbers as all at once."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ):
            result = operation(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
            return result

    model, tokenizer = load(demo_settings("dpo"))
    forward, vocabulary = model.get_base_model().forward, len(tokenizer)
    ids = torch.randint(3, vocabulary, (96, 256), generator=torch.Generator().manual_seed(0))
    sequences = [(row, 8) for row in ids.tolist()]
    with Largest() as largest:
        actual = token_log_probs(model, tokenizer, sequences, 96, False, "rows")
    assert largest.numbers <= 2**24 < 96 * 248 * vocabulary
    assert model.get_base_model().forward == forward
    with torch.no_grad():
        logits = model(input_ids=ids[:4]).logits[:, 7:-1].float()
    expected = logits.log_softmax(-1).gather(-1, ids[:4, 8:, None])[..., 0]
    torch.testing.assert_close(torch.tensor(actual[:4]), expected, rtol=1e-5, atol=1e-5)
