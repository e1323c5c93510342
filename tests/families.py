"""Tiny models of several families: random weights, the demo model's words, a chat template of each
kind, and end tokens where each family has them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers import DEMO_MODEL

CHATML = """\
{%- for turn in messages -%}
<|im_start|>{{ turn.role }}
{{ turn.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
# Writes today's date into a system turn, as Llama 3 does.
DATED = """\
{%- if date_string is not defined -%}
{%- set date_string = strftime_now('%d %b %Y') -%}
{%- endif -%}
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\\n' -}}
{{- 'Today Date: ' + date_string + '\\n\\n' if turn.role == 'system' else '' -}}
{{- turn.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""
# The last reply is rendered with its thoughts, earlier ones without; thinking can be left out.
THINKING = """\
{%- set ns = namespace(asked=0) -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
{{- '<|im_start|>' + turn.role + '\\n' -}}
{%- if turn.role == 'assistant' and loop.index0 > ns.asked -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{{- turn.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}"""
HEADERS = """\
{{- bos_token -}}
{%- for turn in messages -%}
<|start_header_id|>{{ turn.role }}<|end_header_id|>

{{ turn.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""
NO_SYSTEM = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for turn in messages -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate') }}
{%- endif -%}
<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}
{{ turn.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}
<start_of_turn>model
{% endif -%}"""


@dataclass(frozen=True)
class Family:
    """What differs from one family to the next."""

    config: str
    """The name of transformers' configuration class."""
    template: str
    eos: str
    """What the tokenizer calls its end of sequence."""
    ends: tuple[str, ...]
    """What the generation settings declare."""
    reply_end: str
    """What the chat template ends a reply with."""
    special: tuple[str, ...] = ()
    bos: str | None = None
    """Added by the tokenizer, and written by the template."""
    pad: str = "<|endoftext|>"
    more: tuple[tuple[str, Any], ...] = ()
    """Of the configuration."""


FAMILIES = {
    "qwen2": Family(
        "Qwen2Config", CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), "<|im_end|>"
    ),
    "qwen3": Family(
        "Qwen3Config",
        THINKING,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        more=(("head_dim", 16),),  # not hidden_size / num_attention_heads
    ),
    "llama": Family(
        "LlamaConfig",
        HEADERS,
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        special=("<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
    ),
    "gemma": Family(
        "Gemma2Config",
        NO_SYSTEM,
        "<eos>",
        ("<eos>", "<end_of_turn>"),
        "<end_of_turn>",
        special=("<start_of_turn>",),
        bos="<bos>",
        pad="<pad>",
        more=(("head_dim", 16), ("query_pre_attn_scalar", 16), ("sliding_window", 32)),
    ),
}


def make_tokenizer(family: Family) -> Any:
    """The demo model's words, with the family's special tokens and its template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    known = AutoTokenizer.from_pretrained(DEMO_MODEL)
    if "<|im_end|>" in family.ends:
        tokenizer = known
    else:
        tokens = dict.fromkeys((family.pad, family.eos, *family.ends, *family.special))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=known.backend_tokenizer,
            eos_token=family.eos,
            pad_token=family.pad,
            bos_token=family.bos,
            additional_special_tokens=list(tokens),
        )
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = family.template
    tokenizer.model_max_length = 512
    return tokenizer


def make_model(name: str, folder: Path) -> Path:
    """A model folder of the family, with random weights in float32."""
    import torch
    import transformers

    family = FAMILIES[name]
    tokenizer = make_tokenizer(family)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in family.ends]
    config = getattr(transformers, family.config)(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=name != "llama",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0],
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **dict(family.more),
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=0.1)  # or replies are all alike
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
