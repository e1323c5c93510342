"""The tables of what trl's losses and metrics are means over, against trl's own source."""

import ast
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from posttrain.train import micro_batches
from posttrain.train.micro_batches import Part, join_metric

NOT_DIVISIBLE = {"aot", "aot_unpaired"}
# Those of losses that are not divided, and trl's running total.
NOT_JOINED = {"aux_loss", "policy_loss", "entropy_coef", "num_tokens"}
TRAINERS = pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])


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


@TRAINERS
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


@TRAINERS
def test_every_metric_of_trl_is_known(name: str) -> None:
    subscripts = [node for node in ast.walk(compute_loss(name)) if isinstance(node, ast.Subscript)]
    logged = [node for node in subscripts if ast.unparse(node.value) == "self._metrics[mode]"]
    theirs = set().union(*(texts(node.slice) for node in logged)) - NOT_JOINED
    ours = {
        "sft": {"entropy": "tokens", "mean_token_accuracy": "tokens"},  # guarded_sft's metric_kind
        "dpo": micro_batches.PAIR_METRICS,
        "grpo": micro_batches.COMPLETION_METRICS,
    }
    assert theirs == {*ours[name]} - {"step_time"}


def parts(*counts: int) -> list[Part]:
    return [Part({}, {"tokens": count}) for count in counts]


def test_metrics_are_joined_by_what_they_are_means_over() -> None:
    assert join_metric("tokens", [1.0, 4.0], parts(10, 5)) == pytest.approx(2.0)
    assert join_metric("most", [1.0, math.nan, 4.0], parts(1, 0, 1)) == 4.0
    assert join_metric("least", [1.0, math.nan, 4.0], parts(1, 0, 1)) == 1.0
    assert join_metric("sum", [1.0, 4.0], parts(1, 1)) == 5.0
    assert join_metric("tokens", [2.0, math.nan], parts(10, 0)) == 2.0
    assert math.isnan(join_metric("most", [math.nan, math.nan], parts(0, 0)))
    assert join_metric("tokens", [math.nan, math.nan], parts(0, 0)) == 0  # all is masked


def test_rows_of_replies_are_divided_and_flags_are_not() -> None:
    import torch

    labels = torch.tensor([[-100, 4, 5, -100], [-100, -100, 6, 7], [-100, 8, -100, -100]])
    batch = {"input_ids": labels.abs(), "labels": labels, "use_cache": False, "none": None}
    parts = micro_batches.split_replies(batch, 2)
    assert [part.counts for part in parts] == [{"tokens": 4}, {"tokens": 1}]
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
