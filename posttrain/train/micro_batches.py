"""Split micro-batches of trl's trainers into parts whose losses add up, and write them as text.

A DPO micro-batch stacks B chosen rows on B rejected ones; a GRPO micro-batch holds one completion a
row, an SFT micro-batch one prompt and reply. All are dictionaries of tensors with the rows in the
first dimension.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.base.files import write_text

Batch = dict[str, Any]
NOT_SCORED = -100  # the label of a token without a loss, in transformers and trl


# The losses that can be divided, and what each is a mean over, as Part.counts names it. No other is
# divided: aot sorts the pairs of a micro-batch, and a loss that a later trl adds may mix rows too.
PAIR_LOSSES = {
    **dict.fromkeys(("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust"), "pairs"),
    **dict.fromkeys(("bco_pair", "sppo_hard", "apo_zero", "apo_down"), "pairs"),
    **dict.fromkeys(("discopop", "sigmoid_norm"), "pairs"),
    "sft": "chosen tokens",
}
COMPLETION_LOSSES = {
    **dict.fromkeys(("grpo", "sapo", "dr_grpo", "luspo"), "completions"),
    "bnpo": "tokens",
    # A sum over the token count of the generation, which every part has.
    **dict.fromkeys(("dapo", "cispo", "vespo"), "generation"),
}

REPLY_LOSSES = ("nll", "dft")

# What trl's metrics of a micro-batch are means over, or which of their values is taken.
PAIR_METRICS = {
    "entropy": "tokens",
    "mean_token_accuracy": "chosen tokens",
    "logits/chosen": "chosen tokens",
    "logits/rejected": "rejected tokens",
    **dict.fromkeys((f"rewards/{name}" for name in ("chosen", "rejected", "margins")), "pairs"),
    **dict.fromkeys(("rewards/accuracies", "logps/chosen", "logps/rejected"), "pairs"),
}
COMPLETION_METRICS = {
    **dict.fromkeys(("kl", "entropy", "cispo_clip_ratio", "clip_ratio/region_mean"), "tokens"),
    **dict.fromkeys(("clip_ratio/low_mean", "clip_ratio/high_mean"), "tokens"),
    "clip_ratio/low_min": "least",
    "clip_ratio/high_max": "most",
    "vespo/phi_seq_mean": "completions",
    "step_time": "sum",
}
# With importance_sampling_level "sequence" these have one value a completion.
RATIO_METRICS = {name for name in COMPLETION_METRICS if "clip_ratio" in name}
# Unsloth's trainer has means of the same names: its extremes are those of all processes.
UNSLOTH_METRICS = {
    **COMPLETION_METRICS,
    "completion_length": "completions",
    "kl": "completions with tokens",
    "clip_ratio/low_min": "tokens",
    "clip_ratio/high_max": "tokens",
}


@dataclass(frozen=True)
class Part:
    """Some rows of a micro-batch, and their weight in its loss and metrics."""

    inputs: Batch
    counts: dict[str, int] = field(default_factory=dict)
    """How many there are of what losses and metrics are means over; empty if it is all rows."""
    weight: float = 1.0
    """Factor of the part's loss."""
    loss_weights: tuple[float, ...] = ()
    """DPO only: the weight of each loss in training.loss_type, in place of the trainer's own."""


def pair_count(batch: Batch) -> int:
    """Pairs in a DPO micro-batch."""
    return len(batch["input_ids"]) // 2


def split_pairs(
    batch: Batch, rows: int, loss_types: list[str], loss_weights: list[float]
) -> list[Part]:
    """Split into parts of at most `rows` pairs.

    Raises:
        KeyError: there are several parts, and a loss is not in PAIR_LOSSES.
    """
    import torch

    count = pair_count(batch)
    if rows >= count:
        return [Part(batch, loss_weights=tuple(loss_weights))]
    tokens = batch["completion_mask"][:, 1:].sum(1).tolist()  # that are scored, of each reply
    counts, inputs = [], []
    for start in range(0, count, rows):
        end = min(start + rows, count)
        inputs.append(
            {
                key: torch.cat([value[start:end], value[count + start : count + end]])
                if len(value) == 2 * count
                else value[start:end]
                for key, value in batch.items()
            }
        )
        chosen, rejected = sum(tokens[start:end]), sum(tokens[count + start : count + end])
        counts.append(
            {
                "pairs": end - start,
                "chosen tokens": chosen,
                "rejected tokens": rejected,
                "tokens": chosen + rejected,
            }
        )
    weights = [
        [weight * share for share in _shares(counts, PAIR_LOSSES[loss])]
        for loss, weight in zip(loss_types, loss_weights, strict=True)
    ]
    return [
        Part(part, of, loss_weights=tuple(losses))
        for part, of, losses in zip(inputs, counts, zip(*weights, strict=True), strict=True)
    ]


def split_completions(batch: Batch, rows: int, loss_type: str) -> list[Part]:
    """Split into parts of at most `rows` completions.

    Raises:
        KeyError: there are several parts, and the loss is not in COMPLETION_LOSSES.
    """
    count = len(batch["completion_ids"])
    if rows >= count:
        return [Part(batch)]
    mask = batch["completion_mask"]
    tokens = (mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]).sum(1).tolist()
    slices = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    counts = [
        {
            "completions": len(tokens[some]),
            "completions with tokens": sum(map(bool, tokens[some])),
            "tokens": sum(tokens[some]),
        }
        for some in slices
    ]
    over = COMPLETION_LOSSES[loss_type]
    # A part may hold nothing but completions that were cut and are masked for that.
    weights = [1.0] * len(slices) if over == "generation" else _shares(counts, over)
    return [
        Part({key: _rows(value, some) for key, value in batch.items()}, of, max(weight, 1e-9))
        for some, of, weight in zip(slices, counts, weights, strict=True)
    ]


def scored_tokens(batch: Batch) -> int:
    """Tokens of an SFT micro-batch that have a loss."""
    return int((batch["labels"][:, 1:] != NOT_SCORED).sum())


def split_replies(batch: Batch, rows: int) -> list[Part]:
    """Split an SFT micro-batch into parts of at most `rows` rows. Their losses are sums over tokens
    with one divisor, so they need no weight."""
    count = len(batch["input_ids"])
    if rows >= count:
        return [Part(batch)]
    slices = [slice(start, min(start + rows, count)) for start in range(0, count, rows)]
    parts = [{key: _rows(value, some) for key, value in batch.items()} for some in slices]
    return [Part(part, {"tokens": scored_tokens(part)}) for part in parts]


def replies_as_text(batch: Batch, decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """Prompt and reply of each row of an SFT micro-batch, as text and token ids."""
    rows = []
    for i in range(len(batch["input_ids"])):
        keys = ("input_ids", "attention_mask", "labels")
        columns = [batch[key][i].tolist() for key in keys if key in batch]
        ids, labels = columns[0], columns[-1]
        present = columns[1] if len(columns) == 3 else [1] * len(ids)
        known = [x for x in zip(ids, present, labels, strict=True) if x[1]]
        row = {
            "prompt_ids": [token for token, _, label in known if label == NOT_SCORED],
            "reply_ids": [token for token, _, label in known if label != NOT_SCORED],
        }
        rows.append(_with_text(row, decode))
    return rows


def _shares(counts: Sequence[dict[str, int]], of: str) -> list[float]:
    total = max(sum(count[of] for count in counts), 1)
    return [count[of] / total for count in counts]


def join_metric(kind: str, values: Sequence[float], parts: Sequence[Part]) -> float:
    """The metric of a micro-batch from those of its parts; `kind` is a value of the tables above.

    A part that has none of what the metric is over, or NaN for that, is left out.
    """
    known = [value for value in values if not math.isnan(value)]
    joins: dict[str, Callable[[list[float]], float]] = {"least": min, "most": max, "sum": sum}
    if kind in joins:
        return joins[kind](known) if known else math.nan
    shares = _shares([part.counts for part in parts], kind)
    return sum(share * value for share, value in zip(shares, values, strict=True) if share)


def join_scores(parts: list[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Join log-probabilities of parts of a batch, (rows, tokens) each, into those of the batch.

    Unsloth's are wider than the completions by the left padding of the most padded row. Narrower
    parts are padded on the left with zeros, which the loss masks.
    """
    import torch

    if len(parts) == 1:
        return parts[0]
    scores = [log_probs for log_probs, _, _ in parts]
    width = max(log_probs.shape[1] for log_probs in scores)
    pad = torch.nn.functional.pad
    return torch.cat([pad(row, (width - row.shape[1], 0)) for row in scores]), None, None


def _rows(value: Any, which: slice) -> Any:
    """Those rows of an entry of a batch; the entry where it has none, as flags that trl adds."""
    has_rows = hasattr(value, "__len__") and getattr(value, "ndim", None) != 0
    return value[which] if has_rows else value


def pairs_as_text(batch: Batch, decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """Prompt, chosen and rejected of each pair, as text and token ids."""
    count = pair_count(batch)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {}
        for name, place in (("chosen", i), ("rejected", count + i)):
            ids, present, scored = (
                batch[key][place].tolist()
                for key in ("input_ids", "attention_mask", "completion_mask")
            )
            tokens = list(zip(ids, present, scored, strict=True))
            row["prompt_ids"] = [token for token, here, is_reply in tokens if here and not is_reply]
            row[f"{name}_ids"] = [token for token, here, is_reply in tokens if here and is_reply]
        rows.append(row)
    return [_with_text(row, decode) for row in rows]


def completions_as_text(
    batch: Batch, decode: Callable[[list[int]], str], reward_names: list[str]
) -> list[dict[str, Any]]:
    """Prompt, completion, advantage and rewards of each row; texts and token ids."""
    rows = []
    for i, advantage in enumerate(batch["advantages"].tolist()):
        row: dict[str, Any] = {"advantage": advantage}
        for name in ("prompt", "completion"):
            ids, mask = (batch[f"{name}_{what}"][i].tolist() for what in ("ids", "mask"))
            row[f"{name}_ids"] = [token for token, here in zip(ids, mask, strict=True) if here]
        row["rewards"] = dict(zip(reward_names, batch["rewards"][i].tolist(), strict=True))
        rows.append(row)
    return [_with_text(row, decode) for row in rows]


def _with_text(row: dict[str, Any], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    texts = {k.removesuffix("_ids"): decode(v) for k, v in row.items() if k.endswith("_ids")}
    return {**texts, **row}


def write_rows(path: Path, step: int, losses: list[float], rows: list[dict[str, Any]]) -> Path:
    """Write the rows of a step to a JSON file for a person to read, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(_jsonable(row), ensure_ascii=False) for row in rows)
    head = json.dumps({"step": step, "losses": _jsonable(losses)})[:-1]
    write_text(path, f'{head}, "rows": [\n{lines}\n]}}\n')
    return path


def _jsonable(value: Any) -> Any:
    """`value`, with NaN and infinity as text, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_jsonable(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
