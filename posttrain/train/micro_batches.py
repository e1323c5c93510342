"""Split micro-batches of trl's trainers into parts whose losses add up, and write them as text.

A DPO micro-batch stacks B chosen rows on B rejected ones; a GRPO micro-batch holds one completion a
row. Both are dictionaries of tensors with the rows in the first dimension.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.files import write_text

Batch = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Some rows of a micro-batch, and their weight in its loss and metrics."""

    inputs: Batch
    share: float
    """Weight in the metrics: the share of the pairs (DPO) or tokens (GRPO), over which trl's
    metrics are means."""
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
    """Split into parts of at most `rows` pairs. trl averages losses over pairs, sft over tokens."""
    import torch

    count = pair_count(batch)
    if rows >= count:
        return [Part(batch, 1.0, loss_weights=tuple(loss_weights))]
    scored = batch["completion_mask"][:count, 1:].sum(1).tolist()  # tokens of each chosen reply
    parts = []
    for start in range(0, count, rows):
        end = min(start + rows, count)
        inputs = {
            key: torch.cat([value[start:end], value[count + start : count + end]])
            if len(value) == 2 * count
            else value[start:end]
            for key, value in batch.items()
        }
        shares = {"sft": sum(scored[start:end]) / max(sum(scored), 1)}
        weights = (
            weight * shares.get(kind, (end - start) / count)
            for kind, weight in zip(loss_types, loss_weights, strict=True)
        )
        parts.append(Part(inputs, (end - start) / count, loss_weights=tuple(weights)))
    return parts


def split_completions(batch: Batch, rows: int, loss_type: str) -> list[Part]:
    """Split into parts of at most `rows` completions. Each loss type has its own kind of mean."""
    count = len(batch["completion_ids"])
    if rows >= count:
        return [Part(batch, 1.0)]
    tokens = batch["completion_mask"].sum(1).tolist()
    parts = []
    for start in range(0, count, rows):
        end = min(start + rows, count)
        inputs = {key: _rows(value, slice(start, end)) for key, value in batch.items()}
        share = sum(tokens[start:end]) / max(sum(tokens), 1)
        weight = {
            # A sum over the generation's token count, which every part is given.
            **dict.fromkeys(("dapo", "cispo", "vespo"), 1.0),
            "bnpo": max(share, 1e-9),  # a part may hold nothing but what was cut and is masked
        }.get(loss_type, (end - start) / count)
        parts.append(Part(inputs, share, weight))
    return parts


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
    return value if value is None or getattr(value, "ndim", 1) == 0 else value[which]


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
