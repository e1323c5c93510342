"""Reference log-probabilities of the training pairs, computed once and kept on disk.

DPO compares the policy with a reference that never changes, so its log-probability of each reply is
a constant of the run, and of every later run with the same rows and reference: another beta, loss,
rank or learning rate computes none of it again. A file is named by a hash of all that the numbers
depend on, carries a checksum, and is computed again where anything is amiss.
"""

import hashlib
import importlib.metadata
import json
import math
import time
from pathlib import Path
from typing import Any

from posttrain.base.distributed import is_main
from posttrain.base.errors import DataError
from posttrain.base.files import write_json
from posttrain.base.paths import cache_folder
from posttrain.base.progress import progress_bar
from posttrain.model import adapter, policy
from posttrain.train.batches import pair_lengths

LIBRARIES = ("torch", "transformers", "trl", "unsloth")
# Settings of the model's config that say nothing about what it computes.
VOLATILE = {"_name_or_path", "architectures", "transformers_version", "unsloth_version"} | {
    "pad_token_id",
    "use_cache",
}
Values = dict[str, list[float]]


def precompute(trainer: Any) -> None:
    """Give each row of a DPOTrainer its reference log-probabilities, from disk where they are.

    They are computed in training mode, like those of the policy that they are compared with: in
    inference mode, in which Unsloth's GPU path leaves a new trainer, it pads and attends another
    way, and in 16 bits a reply's log-probability differs by up to 0.15 nats.

    The trainer must have been built to score the reference at each step; it will not any more.

    Raises:
        DataError: the reference gives a reply a log-probability that is no number.
    """
    policy.training_mode(trainer.model)
    basis = depends_on(trainer)
    path = cache_folder() / "reference" / f"{_digest(json.dumps(basis, sort_keys=True))}.json"
    values = read(path, basis, len(trainer.train_dataset))
    if values is not None:
        print(f"Reference log-probabilities: {path}")
    else:
        started = time.monotonic()
        values = compute(trainer)
        print(
            f"Reference log-probabilities: computed in {time.monotonic() - started:.1f} s", end=""
        )
        kept = is_main() and keep(path, basis, values)  # every process has the same numbers
        print(f", kept in {path}" if kept else "")
    rows = trainer.train_dataset
    for name, column in values.items():
        rows = rows.add_column(name, column)
    trainer.train_dataset = rows
    trainer.precompute_ref_logps = True


def depends_on(trainer: Any) -> dict[str, Any]:
    """All that the numbers depend on.

    The token ids stand for the dataset, the system prompt, the tokenizer and its chat template.
    """
    model, args = trainer.model, trainer.args
    config = {k: v for k, v in model.config.to_dict().items() if k not in VOLATILE}
    return {
        "rows": _rows_digest(trainer.train_dataset),
        "weights": _weights_digest(model),
        "config": _digest(json.dumps(config, sort_keys=True, default=str)),
        "truncation": [args.max_length, args.truncation_mode],
        "ld_alpha": args.ld_alpha,
        "precision": [str(model.dtype), trainer.accelerator.mixed_precision],
        "mode": "training" if model.training else "inference",
        "device": model.device.type,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _rows_digest(rows: Any) -> str:
    digest = hashlib.sha256()
    columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    for row in zip(*columns, strict=True):
        digest.update(json.dumps(row).encode("ascii"))
    return digest.hexdigest()


def _weights_digest(policy: Any) -> str:
    """SHA-256 over the reference's weights as they are in memory, quantisation included.

    An adapter that is off is no part of them, so runs of another rank or seed share a file.
    """
    import torch

    digest = hashlib.sha256()
    with_adapter = adapter.has_start(policy)
    for name, value in sorted(policy.state_dict().items()):
        if "lora_" in name and not with_adapter:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {value.dtype} {value.shape}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compute(trainer: Any) -> Values:
    """Score every row by trl's own step, longest rows first, so that little is padding.

    Raises:
        DataError: a log-probability is no number.
    """
    args, rows = trainer.args, trainer.train_dataset
    size = args.precompute_ref_batch_size or args.per_device_train_batch_size
    lengths = pair_lengths(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    values = {name: [0.0] * len(rows) for name in ("ref_chosen_logps", "ref_rejected_logps")}
    with (
        adapter.start_for_trl(trainer.model),
        progress_bar("scoring the reference", len(rows)) as bar,
    ):
        for at in range(0, len(order), size):
            batch = order[at : at + size]
            inputs = trainer.data_collator([rows[i] for i in batch])
            inputs = {name: value.to(trainer.model.device) for name, value in inputs.items()}
            scores = trainer.compute_ref_log_probs(trainer.model, inputs)
            for column, score in zip(values.values(), scores, strict=True):
                for i, value in zip(batch, score.tolist(), strict=True):
                    column[i] = value
            bar.update(len(batch))
    for column in values.values():
        for number, value in enumerate(column, start=1):
            if not math.isfinite(value):
                raise DataError(
                    f"training pair {number}: the model before training gives a reply the "
                    f"log-probability {value}; try model.dtype=float32"
                )
    return values


def keep(path: Path, basis: dict[str, Any], values: Values) -> bool:
    """Write a file; False, with a note, where the folder cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"depends_on": basis, "sha256": _checksum(values), "values": values})
    except OSError as error:
        print(f" (not kept for the next run: {error})", end="")
        return False
    return True


def read(path: Path, basis: dict[str, Any], rows: int) -> Values | None:
    """The numbers in a file; None where there is none, or with a note where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values: Values = found["values"]
        whole = found["sha256"] == _checksum(values) and found["depends_on"] == basis
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if whole and all(len(column) == rows for column in values.values()):
        return values
    print(f"note: {path} is damaged; its numbers are computed again")
    return None


def _checksum(values: Values) -> str:
    return _digest(json.dumps(values, sort_keys=True))
