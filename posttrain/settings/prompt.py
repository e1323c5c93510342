"""Settings of `prompt`: what a model reads around each row's question."""

import math
from typing import Any

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
