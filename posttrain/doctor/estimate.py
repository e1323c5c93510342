"""An estimate of a run's peak GPU memory from the shapes of its model: a sum, not a measurement.

peak = weights + adapter + max(generation, activations + logits) + CUDA

weights      layer weights x bytes (4-bit: 0.5 and one 8-bit scale for 64, 4.13 bits in all;
             https://arxiv.org/abs/2305.14314, section 3) + embeddings x 2 (never quantised)
adapter      LoRA weights x (4 for the weight + 4 for its gradient + 2 or 8 for AdamW's moments)
activations  tokens x layers x hidden x bytes kept, and one layer's inside recomputed
             (checkpointing; https://arxiv.org/abs/1604.06174), or every layer's inside without
             it: 6 hidden + 2 key-value + 4 intermediate values a token
logits       tokens x vocabulary x 10 bytes: 16-bit, 32-bit and gradient. For GRPO one
             completion at a time, as Unsloth's loss does
generation   sequences x length x layers x 2 key-value x bytes, the cache of keys and values
CUDA         0.8 GB for its context and libraries, a guess
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.paths import ROOT
from posttrain.doctor.installation import model_cache
from posttrain.settings import DPOSettings, GRPOSettings, GRPOTraining

GB = 2**30
NF4_BYTES = 4.127 / 8
LOGIT_BYTES = 10
CUDA_GB = 0.8
# The model that this project is about, for machines that have not downloaded it yet.
KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2-like or Llama-like model."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    key_value: int
    """Width of the keys: key-value heads x their size."""
    queries: int
    """Width of the queries: heads x their size."""
    tied: bool
    """The output layer is the embedding."""

    def modules(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules by name."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of all linear modules of all layers."""
        return self.layers * sum(a * b for a, b in self.modules().values())

    @property
    def embeddings(self) -> int:
        """Weights of the embedding, and of the output layer where it is another."""
        return self.vocab * self.hidden * (1 if self.tied else 2)


def shape_of(name: str) -> Shape | None:
    """The shape of a local or cached model, None where its config.json is not at hand."""
    values = _config_of(name) or KNOWN.get(name)
    if values is None:
        return None
    try:
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        size = values.get("head_dim") or hidden // heads
        return Shape(
            vocab=values["vocab_size"],
            hidden=hidden,
            intermediate=values["intermediate_size"],
            layers=values["num_hidden_layers"],
            key_value=values.get("num_key_value_heads", heads) * size,
            queries=heads * size,
            tied=bool(values.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ZeroDivisionError):  # of another architecture
        return None


def _config_of(name: str) -> dict[str, Any] | None:
    cached = model_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    places = [Path(name).expanduser(), ROOT / name, *sorted(cached.glob("*"))[-1:]]
    for path in (place / "config.json" for place in places):
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            return values if isinstance(values, dict) else None
    return None


def estimate(settings: DPOSettings | GRPOSettings, shape: Shape) -> dict[str, float]:
    """The terms of the sum above, in GB of 2^30 bytes, and their `peak`."""
    training, lora = settings.training, settings.lora
    width = 4 if settings.model.dtype == "float32" else 2
    layer_bytes = NF4_BYTES if settings.model.load_in_4bit else width
    sizes = [shape.modules()[m] for m in lora.target_modules if m in shape.modules()]
    adapter = shape.layers * lora.r * sum(a + b for a, b in sizes)
    moments = 2 if "8bit" in training.optim else 8
    length = settings.model.max_seq_length
    rows = training.per_device_train_batch_size
    grpo = isinstance(training, GRPOTraining)
    tokens = rows * length * (1 if grpo else 2)  # a DPO row is a chosen and a rejected reply
    inside = 6 * shape.hidden + 2 * shape.key_value + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + inside
    per_token = kept if training.gradient_checkpointing else shape.layers * inside
    scored, generated = tokens, 0
    if isinstance(training, GRPOTraining):
        micro_batches = training.steps_per_generation or training.gradient_accumulation_steps
        scored, generated = training.max_completion_length, rows * micro_batches * length
    terms = {
        "weights": shape.layer_weights * layer_bytes + shape.embeddings * width,
        "adapter": adapter * (4.0 + 4 + moments),
        "activations": tokens * per_token * width,
        "logits": scored * shape.vocab * LOGIT_BYTES,
        "generation": generated * shape.layers * 2 * shape.key_value * width,
        "CUDA": CUDA_GB * GB,
    }
    terms = {name: size / GB for name, size in terms.items()}
    step = max(terms["generation"], terms["activations"] + terms["logits"])
    return {**terms, "peak": terms["weights"] + terms["adapter"] + step + terms["CUDA"]}


def table(rows: list[tuple[str, dict[str, float] | None, str]]) -> list[str]:
    """Lines with the terms of each config in columns, and what was measured beside them."""
    names = ("peak", "weights", "adapter", "activations", "logits", "generation", "CUDA")
    subjects = max(len(subject) for subject, *_ in rows)
    lines = [f"  {'':<{subjects}}  " + "".join(f"{n:>{len(n) + 2}}" for n in names) + "  measured"]
    for subject, terms, measured in rows:
        cells = (f"{terms[n]:{len(n) + 2}.2f}" if terms else f"{'-':>{len(n) + 2}}" for n in names)
        lines.append(f"  {subject:<{subjects}}  " + "".join(cells) + f"  {measured}")
    return lines
