"""What a card could do at most, and what a step of training or decoding needs: FLOPs and bytes.

Peaks are dense figures of the makers' data sheets, without sparsity: tensor-core TFLOP/s in 16-bit
with 32-bit accumulation, and memory bandwidth in GB/s (10^9 bytes). A card that is not in the table
has no peak here, and everything that is a share of a peak is then null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Part of the name that CUDA reports, in the order they are tried: TFLOP/s (16-bit), GB/s.
PEAKS: dict[str, tuple[float, float]] = {
    "H200": (989.0, 4800.0),
    "H100 80GB HBM3": (989.0, 3350.0),
    "H100 PCIe": (756.0, 2000.0),
    "A100-SXM4-80GB": (312.0, 2039.0),
    "A100-SXM4-40GB": (312.0, 1555.0),
    "A100 80GB PCIe": (312.0, 1935.0),
    "A100-PCIE-40GB": (312.0, 1555.0),
    "L40S": (362.0, 864.0),
    "A10G": (70.0, 600.0),
    "A10": (125.0, 600.0),
    "L4": (121.0, 300.0),
    "T4": (65.0, 320.0),
    "V100": (125.0, 900.0),
    "RTX A4000": (76.7, 448.0),
    "RTX 4090": (165.2, 1008.0),
    "RTX 4080": (97.5, 716.8),
    "RTX 3090": (71.0, 936.0),
}


def peaks(name: str) -> tuple[float, float] | None:
    """(FLOP/s, bytes/s) of the card with this name; None if it is not in the table."""
    for part, (tflops, gigabytes) in PEAKS.items():
        if part in name.replace("Tesla ", ""):
            return tflops * 1e12, gigabytes * 1e9
    return None


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model that FLOPs and bytes depend on, and its LoRA parameters."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    lora: int

    @classmethod
    def of(cls, config: Any, lora: int) -> "Shape":
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.vocab_size,
            lora,
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def body(self) -> int:
        """Weights of the linear layers, embeddings and head left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    def forward(self, length: int, scored: int) -> float:
        """FLOPs of one forward pass over a sequence, `scored` of its positions through the head.

        2 for each weight and token; causal attention is 2 x hidden x length^2 a layer (half of the
        full square, for the two products QK^T and AV).
        """
        linear = 2 * (self.body + self.lora) * length + 2 * self.head * scored
        return float(linear + 2 * self.layers * self.hidden * length**2)

    def train(self, length: int, scored: int) -> float:
        """FLOPs of a forward and backward pass with LoRA.

        Backward is as much as forward for the frozen weights (gradients of activations alone) and
        twice as much for attention (both of its factors depend on the input) and LoRA weights.
        What gradient checkpointing computes again is not counted: these are the model's FLOPs.
        """
        once = self.forward(length, scored)
        attention = 2 * self.layers * self.hidden * length**2
        return 2 * once + attention + 2 * self.lora * length

    def cache_bytes(self, width: int = 2) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width


def dpo_flops(shape: Shape, lengths: Sequence[tuple[int, int]], precomputed: bool) -> float:
    """FLOPs of a step over sequences of (tokens, tokens of the reply): the policy, and the
    reference unless its log-probabilities are precomputed."""
    return sum(shape.train(n, k) + (not precomputed) * shape.forward(n, k) for n, k in lengths)


def grpo_flops(shape: Shape, lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """FLOPs of (generating, training on) completions of (prompt tokens, completion tokens).

    beta 0 and one iteration: no reference and no pass for old log-probabilities.
    """
    generation = sum(shape.forward(p + c, c) for p, c in lengths)
    return generation, sum(shape.train(p + c, c) for p, c in lengths)


def decoding_bytes(shape: Shape, weight_bytes: int, lengths: Sequence[tuple[int, int]]) -> float:
    """Bytes that decoding one batch of (prompt, completion) tokens has to read from memory.

    Each decoding step reads every weight once, as stored, and the keys and values of all tokens so
    far of the rows that are still being written (16-bit). Steps are those of the longest row.
    """
    steps = max(c for _, c in lengths)
    cached = sum(c * p + c * (c + 1) // 2 for p, c in lengths)
    return float(steps * weight_bytes + cached * shape.cache_bytes())


def share(amount: float, seconds: float, peak: float | None) -> float | None:
    """amount / seconds as a share of the peak; None where the card's peak is not known."""
    return None if peak is None or seconds <= 0 else round(amount / seconds / peak, 4)
