"""The sizes of a model, from its config.json."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.base.paths import ROOT

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
KNOWN: dict[str, dict[str, Any]] = {
    name: {"tie_word_embeddings": True, **dict(zip(_SIZES, sizes, strict=False))}
    for name, sizes in {
        "Qwen/Qwen2.5-0.5B-Instruct": (151936, 896, 4864, 24, 14, 2),
        "Qwen/Qwen2.5-1.5B-Instruct": (151936, 1536, 8960, 28, 12, 2),
        "Qwen/Qwen2.5-3B-Instruct": (151936, 2048, 11008, 36, 16, 2),
        "Qwen/Qwen3-0.6B": (151936, 1024, 3072, 28, 16, 8, 128),
        "HuggingFaceTB/SmolLM2-135M-Instruct": (49152, 576, 1536, 30, 9, 3),
    }.items()
}
"""The models of configs/, for machines that have not downloaded them yet."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model whose layers are made of the linear modules below."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    key_value: int  # width of the keys: key-value heads x their size
    queries: int  # width of the queries: heads x their size
    tied: bool  # the output layer is the embedding

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
    cached = model_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    places = [Path(os.path.expanduser(name)), ROOT / name, *sorted(cached.glob("*"))[-1:]]
    path = next((p / "config.json" for p in places if (p / "config.json").is_file()), None)
    values = json.loads(path.read_text(encoding="utf-8")) if path else KNOWN.get(name, {})
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


def model_cache() -> Path:
    """Where huggingface_hub keeps models."""
    from huggingface_hub import constants  # reads the environment, which ensure_home() may change

    return Path(constants.HF_HUB_CACHE)
