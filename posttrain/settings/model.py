"""Settings of `model`, `lora` and `prompt`: the base model, the adapter that is trained on it, and
what it reads around each row's question."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator

from posttrain.base.errors import DataError, PostTrainError, given
from posttrain.base.files import jsonl_rows
from posttrain.base.paths import here_or_project
from posttrain.settings.section import Section

# The arguments of transformers' apply_chat_template, and what it renders: not for a template alone.
TAKEN = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    "strftime_now",
}


class Model(Section):
    name: str
    """Hub name or folder of the model to train; with `adapter`, that adapter's base model."""
    adapter: str | None = None
    """Run folder or adapter folder to start from, instead of a new adapter. Its rank, alpha,
    dropout, target modules and kind are those of `lora`; the policy as loaded is the reference of
    DPO and of GRPO's KL term."""
    revision: str | None = None
    """Hub revision; ignored by Unsloth when it swaps in a pre-quantised repository."""
    max_seq_length: int = Field(2048, ge=16)
    """Longest prompt plus reply, in tokens. A longer row is refused or dropped, never cut."""
    load_in_4bit: bool = True
    """QLoRA: base weights in 4-bit NF4. false keeps them in `dtype`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type of the base weights. auto: the best that the device has."""
    min_gpu_memory_gb: float = Field(0.0, ge=0)
    """GPU memory that this config needs. A GPU with less is refused before anything is loaded."""
    config_without_bf16: str | None = None
    """The config to use instead on a GPU without bfloat16. It needs the same memory."""


class RolloutModel(Model):
    """A model that also samples the completions that it learns from."""

    rollout_weights: Literal["auto", "merged", "adapter"] = "auto"
    """What rollouts are sampled from. merged: base and adapter merged while sampling, rounded once
    to the type that the base computes in: one matmul per layer instead of three. auto: merged where
    that needs at most a quarter of the free memory."""
    fast_inference: Literal["never", "auto", "always"] = "never"
    """Sample rollouts with vLLM, in the environment of ./run --vllm; auto: where it is installed
    and there is a GPU. Not yet proven on one."""
    gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)
    """Share of the GPU's memory that vLLM takes, for weights and cache."""


class Lora(Section):
    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is what Unsloth's fast path is written for."""
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """The linear layers that get an adapter, each by its name or by the end of it after a dot."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Learn the length of each row of a weight apart from its direction: DoRA, slower
    (https://arxiv.org/abs/2402.09353)."""


class Example(Section):
    question: str = Field(min_length=1)
    """The user turn of a worked example."""
    answer: str = Field(min_length=1)
    """The reply to it, as the model should write one."""


class Prompt(Section):
    system: str | None = None
    """The system turn. It replaces the rows' own, in every data.format; "" removes them; null keeps
    them, and where a row has none, the chat template may add its own."""
    examples: list[Example] = Field([])
    """Worked examples, `{question, answer}` each, or a JSONL file of them: a user and an assistant
    turn each, before the question, wherever a prompt is rendered. Rewards see the reply alone."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field({})
    """Variables that the model's chat template gets wherever a prompt is rendered, in training,
    scoring and exports, such as `{enable_thinking: false}` for Qwen3."""

    @field_validator("examples", mode="before")
    @classmethod
    def _read_file(cls, value: Any) -> Any:
        """The rows of a file, so that a run records the examples themselves."""
        if not isinstance(value, str):
            return value
        try:
            file = here_or_project(value)
            if not file.is_file():
                raise DataError(f"there is no file '{value}' (a JSONL file of question and answer)")
            rows = jsonl_rows(file)
        except PostTrainError as error:
            raise ValueError(str(error)) from None
        if not rows:
            raise ValueError(f"{file} is empty; write a question and an answer on each line")
        return rows

    @field_validator("chat_template_kwargs", mode="before")
    @classmethod
    def _variables_of_a_template(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if name in TAKEN:
                raise ValueError(f"{name} is for the scripts to set, not a variable of a template")
            number = isinstance(value, int | float) and math.isfinite(value)
            if not (number or isinstance(value, str)):
                raise ValueError(
                    f"{name} should be true, false, a number or text, got {given(value)}"
                )
        return values
