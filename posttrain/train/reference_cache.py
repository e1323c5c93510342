"""Reference log-probabilities of the training pairs, computed once and kept on disk.

DPO's reference never changes, so its log-probability of each reply is the same in every run with
the same rows and reference, whatever the beta, loss, rank or learning rate. The name of a file is a
hash of all that the numbers depend on. It holds a checksum, and a damaged file is computed again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

from posttrain.base.errors import DataError
from posttrain.base.files import fingerprint, write_json
from posttrain.base.paths import cache_folder
from posttrain.base.progress import Clock, progress_bar
from posttrain.model import adapter, runtime
from posttrain.model.device import free_memory
from posttrain.train.guard import is_out_of_memory
from posttrain.train.trainers import pair_lengths

LIBRARIES = ("torch", "transformers", "trl", "unsloth")
# Entries of the model's config that do not change what it computes.
VOLATILE = {
    *("_name_or_path", "architectures", "transformers_version", "unsloth_version"),
    *("pad_token_id", "use_cache"),
}
Values = dict[str, list[float]]


def precompute(trainer: Any) -> None:
    """Add the reference log-probabilities to each row of a DPOTrainer that was built without
    precompute_ref_log_probs, from disk if they are there. Raises as `compute`.

    They are computed in training mode, as the policy's are in training. On a GPU Unsloth leaves a
    new trainer in inference mode, which pads and attends differently: in 16 bits a reply's
    log-probability then differs by up to 0.15 nats.
    """
    runtime.training_mode(trainer.model)
    path = cache_folder() / "reference" / f"{_digest(depends_on(trainer))}.json"
    rows = trainer.train_dataset
    values = read(path)
    if values is not None:
        print(f"Reference log-probabilities: {path}")
    else:
        clock = Clock()
        values = compute(trainer)
        where = f", kept in {path}" if write(path, values) else ""
        print(f"Reference log-probabilities: computed in {clock.seconds():.1f} s{where}")
    for name, column in values.items():
        rows = rows.add_column(name, column)
    trainer.train_dataset = rows
    trainer.precompute_ref_logps = True


def depends_on(trainer: Any) -> dict[str, Any]:
    """Everything that the numbers depend on; token ids stand for rows, prompts and tokenizer."""
    model, args = trainer.model, trainer.args
    config = {k: v for k, v in model.config.to_dict().items() if k not in VOLATILE}
    columns = (trainer.train_dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return {
        "rows": fingerprint(list(zip(*columns, strict=True))),
        "weights": _weights_digest(model),
        "config": _digest(config),
        "truncation": [args.max_length, args.truncation_mode],
        "ld_alpha": args.ld_alpha,
        "precision": [str(model.dtype), trainer.accelerator.mixed_precision],
        "mode": "training" if model.training else "inference",
        "device": model.device.type,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _weights_digest(policy: Any) -> str:
    """SHA-256 of the reference's weights as they are in memory, quantised or not. An adapter that
    is not part of the reference is left out, so that runs of another rank or seed share a file."""
    import torch

    digest = hashlib.sha256()
    with_adapter = adapter.has_start(policy)
    if with_adapter:
        lora = policy.peft_config["default"]
        kind = f"{lora.r} {lora.lora_alpha} {lora.use_rslora} {lora.use_dora} no dropout"
        digest.update(kind.encode())
    for name, value in sorted(policy.state_dict().items()):
        if "lora_" in name and not with_adapter:
            continue
        digest.update(f"{name.replace('.base_layer', '')} {value.dtype} {value.shape}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compute(trainer: Any) -> Values:
    """Score every row with trl's own code, sorted by length, so that there is little padding.
    Raises DataError for a log-probability that is not finite."""
    args, rows = trainer.args, trainer.train_dataset
    size = args.precompute_ref_batch_size or args.per_device_train_batch_size
    lengths = pair_lengths(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    values = {name: [0.0] * len(rows) for name in ("ref_chosen_logps", "ref_rejected_logps")}
    with progress_bar("scoring the reference", len(rows)) as bar:
        at = 0
        while at < len(order):
            batch = order[at : at + size]
            inputs = trainer.data_collator([rows[i] for i in batch])
            inputs = {name: value.to(trainer.model.device) for name, value in inputs.items()}
            try:
                scores = trainer.compute_ref_log_probs(trainer.model, inputs)
            except RuntimeError as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                scores = None
            if scores is None:  # after the except block, whose error holds the memory
                free_memory()
                size = len(batch) // 2
                continue
            at += len(batch)
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


def write(path: Path, values: Values) -> bool:
    """Write the numbers to a file; prints a note and returns False if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"sha256": _digest(values), "values": values})
    except OSError as error:
        print(f"note: reference log-probabilities are not kept for the next run: {error}")
        return False
    return True


def read(path: Path) -> Values | None:
    """The numbers in a file; None if there is no file, or if it is damaged, which is printed."""
    if not path.exists():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        values: Values = content["values"]
        if content["sha256"] == _digest(values):
            return values
    print(f"note: {path} is damaged; its numbers are computed again")
    return None
