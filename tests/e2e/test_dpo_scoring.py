"""How a DPO run is scored: on the demo model, against an independent model in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.measures import compare
from eval.replies import kl_per_token
from posttrain.run.folder import RunFolder
from posttrain.scoring import pairs as scoring
from tests.e2e.trainers import load, move, plain, rows_of
from tests.helpers import demo_settings


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The demo policy with noise on its adapter, its tokenizer, and its like in float64."""
    import torch

    model, tokenizer = load(demo_settings("dpo"))
    move(model)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model, tokenizer, plain(folder, dtype=torch.float64)


def test_kl_is_that_of_replies_sampled_at_temperature_1(moved: tuple[Any, Any, Any]) -> None:
    """Per reply it equals k3 of float64; on average, the sum over the whole vocabulary."""
    import torch

    model, tokenizer, exact = moved
    how = "evaluation={temperature: 0.0, batch_size: 50, stop_at_answer: true}"
    settings = demo_settings("dpo", how)
    prompts = [list(pair.prompt) for pair in rows_of("dpo", settings)[:80]]
    sampled, result = scoring.sample(model, tokenizer, prompts, settings)
    assert len({reply.text for reply in sampled}) > 40
    complete = []
    for turns, reply, kl in zip(prompts, sampled, result, strict=True):
        assert tokenizer.decode(reply.ids, skip_special_tokens=True) == reply.text
        assert len(reply.ids) == reply.tokens
        assert (reply.ids[-1] == tokenizer.eos_token_id) != reply.truncated
        start = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        ids = torch.tensor([[*start, *reply.ids]])
        steps = slice(len(start) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            own = exact(ids).logits[0, steps].log_softmax(-1)
            with exact.disable_adapter():
                reference = exact(ids).logits[0, steps].log_softmax(-1)
        chosen = ids[0, len(start) :, None]
        by_hand = [p.gather(-1, chosen)[:, 0].tolist() for p in (own, reference)]
        assert kl == pytest.approx(kl_per_token(*by_hand), abs=1e-5, rel=1e-5)
        complete.append(float((own.exp() * (own - reference)).sum(-1).mean()))
    mean, expected = sum(result) / len(result), sum(complete) / len(complete)
    spread = [a - b for a, b in zip(result, complete, strict=True)]
    error = math.sqrt(sum((x - mean + expected) ** 2 for x in spread)) / len(spread)
    assert expected > 0.01
    assert abs(mean - expected) < 4 * error


@pytest.fixture
def score(moved: tuple[Any, Any, Any], tmp_path: Path) -> Callable[..., tuple[Any, Any, RunFolder]]:
    """`score(COUNT, OVERRIDE, ...)`: of the first pairs, read back as taken; settings and run."""
    model, tokenizer, _ = moved

    def scored(count: int, *overrides: str) -> tuple[Any, Any, RunFolder]:
        settings = demo_settings("dpo", *overrides)
        pairs = rows_of("dpo", settings)[:count]
        problems = scoring.load_problems(settings, pairs, tokenizer)
        run = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        run.open(fresh=False)
        assert scoring.read_scores(run, settings) is None
        taken = scoring.score(model, tokenizer, pairs, problems, settings, run, "before")
        assert scoring.read_scores(run, settings) == taken
        return taken, settings, run

    return scored


def test_scores_are_read_back_as_they_were_taken(score: Callable[..., Any]) -> None:
    also = "{name: a, path: assets/demo_data/problems_test.jsonl, limit: 6, max_new_tokens: 60}"
    few = f"evaluation={{replies: 5, batch_size: 16, also: [{also}]}}"
    taken, settings, run = score(8, few)
    assert [len(taken.pairs), len(taken.replies), len(taken.divergence)] == [8, 5, 5]
    assert [reply.prompt for reply in taken.without_system] == [r.prompt for r in taken.replies]
    assert {reply.system for reply in taken.replies} == {settings.prompt.system}
    assert {reply.system for reply in taken.without_system} == {None}
    assert min(taken.divergence) > 0 and len(taken.problems["a"]) == 6
    comparison = compare(taken.measures(), taken.measures())
    assert {"reward_accuracy", "kl_per_token", "a/strict", "a/truncated_rate"} <= set(comparison)
    assert {"french_share", "french_share_without_system"} <= set(comparison)
    assert all(change.difference == 0 for change in comparison.values())
    files = ("before", "before_replies", "before_replies_without_system", "before_samples")
    for name in (*files, "before_problems_a"):
        path = run.path / "eval" / f"{name}.jsonl"
        path.rename(path.with_suffix(".away"))
        assert scoring.read_scores(run, settings) is None, name
        path.with_suffix(".away").rename(path)


def test_replies_without_the_system_turn_are_those_to_the_bare_prompts(
    score: Callable[..., Any],
) -> None:
    """They change none of the others, and there are none where no prompt has such a turn."""
    few = "evaluation={replies: 12, batch_size: 12, also: []}"
    prompted, *_ = score(12, few, "prompt.system=Réponds en français.")
    bare, *_ = score(12, few, "prompt.system=null")
    assert [r.text for r in prompted.without_system] == [r.text for r in bare.replies]
    assert [r.text for r in prompted.without_system] != [r.text for r in prompted.replies]
    assert bare.without_system == []
    assert "french_share_without_system" not in bare.measures()
    assert prompted.measures()["french_share_without_system"] == bare.measures()["french_share"]


def test_without_replies_or_problem_sets(score: Callable[..., Any]) -> None:
    taken, *_ = score(4, "evaluation={replies: 0, batch_size: 16, also: []}")
    assert set(compare(taken.measures(), taken.measures())) == {
        *("reward_accuracy", "length_controlled_accuracy", "reward_margin")
    }
