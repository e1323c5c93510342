"""The tables of what trl's losses are means over, against trl's own source."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from posttrain.train import micro_batches

NOT_DIVISIBLE = {"aot", "aot_unpaired"}


def compute_loss(name: str) -> ast.FunctionDef:
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    function = "compute_loss" if name == "sft" else "_compute_loss"
    path = Path(spec.origin).parent / "trainer" / f"{name}_trainer.py"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return node
    raise AssertionError(f"trl's {name}_trainer.py has no {function}")


def texts(node: ast.AST) -> set[str]:
    values = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return {text for text in values if isinstance(text, str)}


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_every_loss_of_trl_is_known(name: str) -> None:
    """One more in a later trl is not divided until it is in the table."""
    compared = [
        node
        for node in ast.walk(compute_loss(name))
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("loss_type")
    ]
    theirs = set().union(*(texts(right) for node in compared for right in node.comparators))
    if name == "dpo":
        assert theirs == {*micro_batches.PAIR_LOSSES, *NOT_DIVISIBLE}
    else:
        losses = {"sft": micro_batches.REPLY_LOSSES, "grpo": micro_batches.COMPLETION_LOSSES}
        assert theirs == {*losses[name]}


def test_rows_of_replies_are_divided_and_flags_are_not() -> None:
    import torch

    labels = torch.tensor([[-100, 4, 5, -100], [-100, -100, 6, 7], [-100, 8, -100, -100]])
    batch = {"input_ids": labels.abs(), "labels": labels, "use_cache": False, "none": None}
    parts = micro_batches.split_replies(batch, 2)
    assert [part.inputs["labels"].tolist() for part in parts] == [
        labels[:2].tolist(),
        labels[2:].tolist(),
    ]
    assert all(part.inputs["use_cache"] is False for part in parts)
    assert micro_batches.scored_tokens(batch) == 5


def test_an_unknown_loss_is_not_divided() -> None:
    import torch

    pairs = {"input_ids": torch.ones(4, 3), "completion_mask": torch.ones(4, 3)}
    completions = {"completion_ids": torch.ones(4, 3), "completion_mask": torch.ones(4, 3)}
    with pytest.raises(KeyError, match="newest"):
        micro_batches.split_pairs(pairs, 1, ["newest"], [1.0])
    with pytest.raises(KeyError, match="newest"):
        micro_batches.split_completions(completions, 1, "newest")
