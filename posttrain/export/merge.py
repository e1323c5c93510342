"""Merge a LoRA adapter into the weights of its base model, in float32, rounded once.

The arithmetic is peft's own (LoRA, rsLoRA, DoRA, patterns of ranks and scales), but for one layer
at a time. peft adds in the type of the base weights, so each weight is read from the base's files,
converted to float32 for the sum, and rounded to the type of the export. Only one merged file of the
base and one layer in float32 are in memory.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask
from posttrain.model.pretrained import end_at_replies, end_tokens, save_tokenizer
from posttrain.settings.adapters import obstacle, read_adapter

LORA_TENSOR = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def stored_dtype(base: Path) -> str:
    """The type of the stored base weights, from the config."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that an adapter can be merged exactly.

    Raises:
        ConfigError: it is not LoRA, or changes more than linear layers.
    """
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    if reason := obstacle(read_adapter(adapter), bool(tied)):
        raise ConfigError(
            f"{adapter} {reason}; export.py merges LoRA, rsLoRA and DoRA on linear layers"
        )


def put_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter, not merged. The adapter's weights are converted to float32.

    If the model is on the meta device, without weights, the adapter's weights are on the CPU.

    Raises:
        ConfigError: the adapter does not fit the model, or part of it is missing.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ConfigError(f"{adapter} has no adapter_model.safetensors")
    weights = {
        LORA_TENSOR.sub(r".\1.default.weight", name): weight.float()
        for name, weight in load_file(path).items()
    }
    try:
        model = PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=True)
        # peft puts the adapter on the device of the base weights, which may be the meta device.
        loaded = model.load_state_dict(weights, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{adapter} does not fit its base model: {reason}") from None
    odd = [
        *loaded.unexpected_keys,
        *(name for name in loaded.missing_keys if ".lora_" in name),
    ]
    if odd:
        raise ConfigError(
            f"{adapter} does not fit its base model: {len(odd)} tensors are on one side only, such "
            f"as {odd[0]}"
        )
    return model.eval()


def merge(base: Path, adapter: Path, dtype: str, into: Path) -> None:
    """Write the merged model with its tokenizer, chat template and greedy generation settings.

    Args:
        dtype: float16 or bfloat16; float32 is for measuring what rounding costs.

    Raises:
        ConfigError: the adapter cannot be merged, or a weight does not fit the type.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    check_adapter(adapter, base)
    kind = getattr(torch, dtype)
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    layers = _adapted_layers(put_adapter(skeleton, adapter))
    shards = sorted(base.glob("model*.safetensors"))
    into.mkdir(parents=True)
    for shard in shards:
        merged = {}
        with safe_open(shard, "pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118  # not a mapping
                weight = file.get_tensor(name)
                if layer := layers.pop(name, None):
                    weight = _merge_layer(layer, weight)
                merged[name] = weight.to(kind)
                if not torch.isfinite(merged[name]).all():
                    raise ConfigError(f"{name} does not fit {dtype}: export with --dtype bfloat16")
        save_file(merged, into / shard.name, metadata={"format": "pt"})
        follow_umask(into / shard.name)
    if layers:
        raise ConfigError(
            f"{base} has no safetensors weights for {len(layers)} layers that {adapter} changes, "
            f"such as {next(iter(layers))}"
        )
    for index in base.glob("model*.safetensors.index.json"):
        shutil.copyfile(index, into / index.name)
    config.dtype = kind
    config.save_pretrained(into)
    tokenizer = load_tokenizer(adapter, base)
    save_tokenizer(tokenizer, into)
    generation_settings(base, tokenizer).save_pretrained(into)


def _adapted_layers(model: Any) -> dict[str, Any]:
    """Name of a weight in the base's files -> peft's layer for it, without the base weight."""
    from peft.tuners.lora import Linear, LoraLayer

    layers = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            if not isinstance(layer, Linear):
                raise ConfigError(f"the adapter changes {name}, which is not a linear layer")
            layers[f"{name}.weight"] = layer
    return layers


def _merge_layer(layer: Any, weight: Any) -> Any:
    """The merged weight in float32, by peft's own arithmetic."""
    import torch

    linear = layer.get_base_layer()
    linear.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
    layer.merge(safe_merge=True)
    merged = linear.weight.data
    linear.weight = torch.nn.Parameter(merged.to("meta"), requires_grad=False)
    return merged


def generation_settings(base: Path, tokenizer: Any) -> Any:
    """Greedy decoding with the end tokens of the base and of the tokenizer. The base's sampling
    settings (temperature, repetition penalty) are left out: the training did not use them."""
    from transformers import GenerationConfig

    ends = end_tokens_of(base, tokenizer)
    return GenerationConfig(
        do_sample=False,
        bos_token_id=_declared(base).bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def end_tokens_of(base: Path, tokenizer: Any) -> list[int]:
    """Ids that end a reply: the tokenizer's EOS and those that the base model declares."""
    return sorted(end_tokens(_declared(base), tokenizer))


def _declared(base: Path) -> Any:
    """The generation settings that a model folder comes with."""
    from transformers import AutoConfig, GenerationConfig

    if (base / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(base)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(base))


def load_tokenizer(adapter: Path, base: Path) -> Any:
    """The tokenizer of the training: the copy in the adapter folder, else that of the base."""
    from transformers import AutoTokenizer

    own = all((adapter / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = AutoTokenizer.from_pretrained(adapter if own else base)
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {adapter} and {base} has no chat template")
    end_at_replies(tokenizer)
    return tokenizer
