"""Merge a LoRA adapter into the weights of its base model, in float32, rounded once.

peft merges (LoRA, rsLoRA, DoRA, patterns of ranks and scales). It adds in the type of the base
weights, and in bfloat16 that rounds small adapters away: so the base is loaded in float32, which
the check of the export needs too.
"""

from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask, read_object
from posttrain.model.pretrained import check_files, end_at_replies, end_tokens, save_tokenizer
from posttrain.settings.adapters import WEIGHTS, obstacle, read_adapter

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def stored_dtype(base: Path) -> str:
    """The type of the stored base weights, from the config."""
    config = read_object(base / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def check_adapter(adapter: Path, base: Path) -> None:
    """Raise ConfigError unless an adapter can be merged exactly: it is LoRA on linear layers."""
    tied = read_object(base / "config.json").get("tie_word_embeddings")
    if reason := obstacle(read_adapter(adapter), bool(tied)):
        raise ConfigError(
            f"{adapter} {reason}; an export merges LoRA, rsLoRA and DoRA on linear layers"
        )
    check_files(adapter)


def put_adapter(model: Any, adapter: Path) -> Any:
    """A float32 model with the adapter, not merged; raises ConfigError if the adapter does not fit
    the model, or part of it is missing."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors import safe_open

    check_files(adapter)
    try:
        model = PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{adapter} does not fit its base model: {reason}") from None
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(adapter / WEIGHTS, "pt") as file:
        unmatched = expected ^ set(file.keys())
    if unmatched:
        raise ConfigError(
            f"{adapter} does not fit its base model: {len(unmatched)} tensors are in only one of "
            f"them, such as {min(unmatched)}"
        )
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and not isinstance(layer.get_base_layer(), torch.nn.Linear):
            raise ConfigError(f"the adapter changes {name}, which is not a linear layer")
    return model.eval()


def merge(model: Any, base: Path, adapter: Path, dtype: str, into: Path) -> None:
    """Write the merged model with its tokenizer, chat template and greedy generation settings.
    Raises ConfigError if a weight does not fit the type.

    Args:
        model: The base in float32 with the adapter, as put_adapter returns it; it is used up.
        dtype: float16 or bfloat16; float32 is for measuring what rounding costs.
    """
    import torch

    kind = getattr(torch, dtype)
    merged = model.merge_and_unload(safe_merge=True)
    for name, weight in merged.named_parameters():
        weight.data = weight.data.to(kind)
        if not torch.isfinite(weight.data).all():
            raise ConfigError(f"{name} does not fit {dtype}: export with --dtype bfloat16")
    merged.config.dtype = kind
    tokenizer = load_tokenizer(adapter, base)
    merged.generation_config = generation_settings(base, tokenizer)
    merged.save_pretrained(into)
    save_tokenizer(tokenizer, into)
    for path in into.iterdir():
        follow_umask(path)


def generation_settings(base: Path, tokenizer: Any) -> Any:
    """Greedy decoding with the end tokens of the base and of the tokenizer, without the base's
    sampling settings (temperature, repetition penalty), which the training did not use."""
    from transformers import GenerationConfig

    declared = declared_generation(base)
    ends = sorted(end_tokens(declared, tokenizer))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=declared.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def declared_generation(base: Path) -> Any:
    """The GenerationConfig that a model declares, in a file for it or in its config."""
    from transformers import AutoConfig, GenerationConfig

    if (base / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(base)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(base))


def load_tokenizer(adapter: Path, base: Path) -> Any:
    """The tokenizer of the training: the copy in the adapter folder, else that of the base."""
    from transformers import AutoTokenizer

    has_copy = all((adapter / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = AutoTokenizer.from_pretrained(adapter if has_copy else base)
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {adapter} and {base} has no chat template")
    end_at_replies(tokenizer)
    return tokenizer
