"""Reference log-probabilities from disk: the same numbers, and only where nothing has changed."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.run.folder import RunFolder
from posttrain.train import reference_cache
from posttrain.train.trainers import pair_lengths
from scripts import dpo
from tests.e2e import trainers
from tests.e2e.trainers import load, rows_of
from tests.helpers import DEMO_MODEL, Capsys, demo_settings, read

PAIRS = 32
Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def trainer_of(*overrides: str, change: Callable[[list[Pair]], list[Pair]] = list) -> Any:
        first = ["training.precompute_ref_log_probs=true", "training.max_steps=2"]
        settings = demo_settings("dpo", *first, "evaluation.also=[]", *overrides)
        pairs = change(rows_of("dpo", settings)[:PAIRS])
        run = RunFolder(tmp_path / "run")
        return dpo.build_trainer(*load(settings), pairs, settings, run)[0]

    return trainer_of


def losses(trainer: Any) -> list[tuple[float, float]]:
    trainer.train()
    rows = [(row["loss"], row["grad_norm"]) for row in trainers.logged(trainer)]
    assert len(rows) == 2
    return rows


def columns(trainer: Any) -> list[list[float]]:
    return [list(trainer.train_dataset[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]


def test_cached_computed_and_per_step_losses_are_the_same(
    build: Build, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    first = build()
    assert "computed in" in capsys.readouterr().out
    (file,) = cache.iterdir()
    again = build("lora.r=8", "training.beta=0.5", "training.seed=1", "training.learning_rate=1e-3")
    assert columns(again) == columns(first)  # none of these changes the reference
    with monkeypatch.context() as patched:
        patched.setattr(reference_cache, "compute", None)
        cached = build()
    assert str(file) in capsys.readouterr().out
    fresh = losses(first)
    assert losses(cached) == fresh  # bit by bit
    at_each_step = losses(build("training.precompute_ref_log_probs=false"))
    for one, other in zip(at_each_step, fresh, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_numbers_are_those_of_the_base_model(build: Build) -> None:
    """Summed log-probability of reply and EOS, from an independent float64 model."""
    import torch

    exact = trainers.plain(dtype=torch.float64)
    for number, row in enumerate(build().train_dataset.select(range(8))):
        for side in ("chosen", "rejected"):
            scores = trainers.token_log_probs(exact, row["prompt_ids"], row[f"{side}_ids"])
            expected = pytest.approx(float(scores.sum()), abs=1e-4)
            assert row[f"ref_{side}_logps"] == expected, number


def with_another_word(pairs: list[Pair]) -> list[Pair]:
    first, *others = pairs
    return [first.__class__(**{**vars(first), "chosen": first.chosen + " Oui."}), *others]


def test_another_row_template_model_or_limit_is_another_file(
    build: Build, cache: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    names: set[str] = set()

    def expect_new(what: str, new: bool = True) -> None:
        result = {path.name for path in cache.iterdir()}
        assert (result > names) == new, what
        names.update(result)

    build()
    expect_new("the first")
    build(change=with_another_word)
    expect_new("a row")
    build(change=lambda pairs: pairs[::-1])
    expect_new("the order")
    build("model.max_seq_length=300")
    expect_new("the limit")
    build("training.ld_alpha=0.5")
    expect_new("LD-DPO's alpha")

    template = shutil.copytree(DEMO_MODEL, tmp_path / "template")
    jinja = template / "chat_template.jinja"
    jinja.write_text(jinja.read_text().replace("<|im_start|>", "<|im_start|> "))
    build(f"model.name={template}")
    expect_new("the chat template")

    moved = shutil.copytree(DEMO_MODEL, tmp_path / "moved")
    build(f"model.name={moved}")
    expect_new("the folder alone", new=False)
    weights = load_file(moved / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    build(f"model.name={moved}")
    expect_new("one bit of a weight")

    settings = read(moved / "config.json")
    settings["rms_norm_eps"] *= 2
    (moved / "config.json").write_text(json.dumps(settings))
    build(f"model.name={moved}")
    expect_new("the model's config")


def test_damaged_file_is_computed_again_with_a_note(
    build: Build, cache: Path, capsys: Capsys
) -> None:
    right = columns(build())
    (file,) = cache.iterdir()
    complete = file.read_text(encoding="utf-8")
    for damaged in (complete[: len(complete) // 2], "", "[]"):
        file.write_text(damaged, encoding="utf-8")
        assert reference_cache.read(file) is None
    content = json.loads(complete)
    content["values"]["ref_chosen_logps"][3] += 1e-3
    file.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert columns(build()) == right
    output = capsys.readouterr().out
    assert f"note: {file} is damaged" in output and "computed in" in output
    assert file.read_text(encoding="utf-8") == complete


def test_folder_that_cannot_be_written_to_does_not_stop_the_run(
    build: Build, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(columns(build())[0]) == PAIRS
    assert "not kept for the next run" in capsys.readouterr().out


def test_a_batch_that_does_not_fit_is_halved(build: Build) -> None:
    import torch

    trainer = build("training.precompute_ref_log_probs=false")
    expected, score = reference_cache.compute(trainer), trainer.compute_ref_log_probs

    def no_room(model: Any, inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 4:  # of two pairs
            raise torch.OutOfMemoryError("no room")
        return score(model, inputs)

    trainer.compute_ref_log_probs = no_room
    for column, values in reference_cache.compute(trainer).items():
        assert values == pytest.approx(expected[column], abs=1e-4)
    trainer.compute_ref_log_probs = lambda *_: no_room(None, {"input_ids": [0] * 9})
    with pytest.raises(torch.OutOfMemoryError):
        reference_cache.compute(trainer)


def test_reply_of_no_finite_log_probability_stops_the_run(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("training.precompute_ref_log_probs=false")
    score = trainer.compute_ref_log_probs

    def overflow(model: Any, inputs: Any) -> Any:
        return [value * math.inf for value in score(model, inputs)]

    trainer.compute_ref_log_probs = overflow
    with pytest.raises(
        DataError, match=r"training pair 1: .* log-probability -inf; try model.dtype"
    ):
        reference_cache.compute(trainer)


def test_reply_that_would_be_cut_stops_the_run(build: Build) -> None:
    """data.py refuses such a pair before; this is for what trl may count otherwise."""
    trainer = build()
    lengths = pair_lengths(trainer.train_dataset)
    longest = max(lengths)
    build(f"model.max_seq_length={longest}")
    output = f"{lengths.count(longest)} of {PAIRS} pairs take over {longest - 1} tokens"
    with pytest.raises(DataError, match=output):
        build(f"model.max_seq_length={longest - 1}")
    shortest = min(len(ids) for ids in trainer.train_dataset["prompt_ids"])
    with pytest.raises(DataError, match=f"{PAIRS} of {PAIRS} pairs take over {shortest + 1}"):
        # trl drops most of them; no problem would fit either
        build("evaluation.also=[]", f"model.max_seq_length={shortest + 1}")
