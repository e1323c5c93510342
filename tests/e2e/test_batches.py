"""Batches of like length: less padding, every pair once; and the same order after a resume."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import DataError
from posttrain.train.trainers import pair_lengths
from scripts import grpo
from tests.e2e import trainers
from tests.helpers import demo_settings


def build(folder: Path, strategy: str, *overrides: str, pairs: int = 40) -> Any:
    short = ["training.per_device_train_batch_size=4", "training.max_steps=22"]
    short += [f"training.train_sampling_strategy={strategy}", "training.save_steps=13"]
    return trainers.build("dpo", folder, *short, *overrides, count=pairs).trainer


def epoch_of(trainer: Any, epoch: int) -> list[Any]:
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def padding(batch: Any) -> int:
    return int((1 - batch["attention_mask"]).sum())


def keys(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(row[row > 0].tolist()) for row in batch["input_ids"]]


def test_less_padding_and_every_pair_once_an_epoch(tmp_path: Path) -> None:
    grouped, random = (build(tmp_path, name, pairs=160) for name in ("group_by_length", "random"))
    for epoch in range(2):
        first, second = epoch_of(grouped, epoch), epoch_of(random, epoch)
        assert sum(map(padding, first)) < 0.75 * sum(map(padding, second))
        rows = sorted(itertools.chain.from_iterable(map(keys, first)))
        assert rows == sorted(itertools.chain.from_iterable(map(keys, second)))
    lengths = pair_lengths(grouped.train_dataset)
    assert max(lengths) == epoch_of(grouped, 0)[0]["input_ids"].shape[1]  # no memory shock later


def test_order_follows_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    import torch

    trainer = build(tmp_path, "group_by_length")
    orders = []
    for epoch in (0, 1, 0):
        torch.rand(epoch + 1)  # whatever else draws from the global state
        orders.append([keys(batch) for batch in epoch_of(trainer, epoch)])
    assert orders[0] == orders[2] != orders[1]
    other = build(tmp_path, "group_by_length", "training.seed=1")
    assert [keys(batch) for batch in epoch_of(other, 0)] != orders[0]


def test_run_resumed_in_a_later_epoch_is_the_same_run(tmp_path: Path) -> None:
    """From step 13 of 22, in the second of three epochs of ten steps."""
    complete = build(tmp_path / "complete", "group_by_length")
    complete.train()
    resumed = build(tmp_path / "resumed", "group_by_length")
    checkpoint = tmp_path / "complete" / "run" / "checkpoints" / ".staging" / "checkpoint-13"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    kept, log = (
        [(row["step"], row["loss"], row["grad_norm"]) for row in trainers.logged(trainer)]
        for trainer in (complete, resumed)
    )
    assert len(kept) == 22 and log == kept


def test_grpo_draws_the_same_problems_after_a_resume_in_a_later_epoch(tmp_path: Path) -> None:
    """From step 6 of 9, in the second of three epochs of four steps with two problems each."""
    few = ["training.per_device_train_batch_size=8", "training.num_generations=4"]
    few += ["training.gradient_accumulation_steps=1", "training.max_completion_length=6"]
    few += ["training.max_steps=9", "training.save_steps=6"]
    drawn: dict[str, list[str]] = {}

    def train(name: str, checkpoint: Path | None = None) -> list[Any]:
        seen = drawn[name] = []

        def length(completions: Any, question: list[str], **_: Any) -> list[float]:
            seen.extend(question[::4])
            return [float(len(each[0]["content"])) for each in completions]

        both = {"format": length, "correctness": lambda completions, **_: [0.0] * len(completions)}
        trainer = trainers.build("grpo", tmp_path / name, *few, count=8, rewards=both).trainer
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        names = ("step", "loss", "grad_norm", "reward")
        return [tuple(row[name] for name in names) for row in trainers.logged(trainer)]

    complete = train("complete")
    saved = tmp_path / "complete" / "run" / "checkpoints" / ".staging" / "checkpoint-6"
    assert train("resumed", saved) == complete and len(complete) == 9
    assert drawn["resumed"] == drawn["complete"][12:]
    epochs = [drawn["complete"][at : at + 8] for at in (0, 8)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_problems_for_less_than_one_generation_are_refused() -> None:
    """trl would leave them all out, train nothing, and the run would end as a finished one."""
    given = ["training.per_device_train_batch_size=8", "training.num_generations=4"]
    given += ["training.gradient_accumulation_steps=3"]
    settings = demo_settings("grpo", *given)
    grpo.check_enough(6, settings)
    with pytest.raises(DataError, match="5 problems to train on, and a generation takes 6 "):
        grpo.check_enough(5, settings)
