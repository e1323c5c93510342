"""Merge a LoRA adapter into the weights of its base model, in float32, rounded once.

The arithmetic is peft's own (LoRA, rsLoRA, DoRA, patterns of ranks and scales), but on one layer at
a time and never on a whole model: peft adds in the type of the base weights, so each weight is read
from the base's files, raised to float32 for the sum and rounded to the type of the export. What is
in memory is one file of the base, merged, and one layer in float32.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.model.adapter import MOVED
from posttrain.model.policy import save_tokenizer

LORA_TENSOR = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def stored_dtype(base: Path) -> str:
    """The type that the base's weights are stored in, as its config says."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def check_adapter(adapter: Path, base: Path) -> None:
    """Refuse what cannot be merged exactly.

    Raises:
        ConfigError: not a LoRA, or one that changes more than linear layers.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    kind = config.get("peft_type")
    problems = [
        (kind != "LORA", f"is a {kind} adapter; only LoRA can be merged here"),
        (config.get("modules_to_save"), "trains whole modules (modules_to_save)"),
        (config.get("trainable_token_indices"), "trains token embeddings"),
        (config.get("bias", "none") != "none", "trains biases"),
        (config.get("lora_bias"), "has biases of its own (lora_bias)"),
        (config.get("target_parameters"), "targets bare parameters (target_parameters)"),
        (
            str(config.get("init_lora_weights")).startswith(MOVED),
            "is a checkpoint's: part of the base weights has moved into it (init_lora_weights = "
            f"{config.get('init_lora_weights')}). A run's adapter/ is saved for the whole base;",
        ),
    ]
    targets = config.get("target_modules") or []
    targets = [targets] if isinstance(targets, str) else targets
    for name in ("embed_tokens", "lm_head", "wte"):
        if any(target.split(".")[-1] == name for target in targets):
            why = " (tied: one matrix does both jobs)" if tied else ""
            problems.append((True, f"changes {name}{why}"))
    for wrong, what in problems:
        if wrong:
            raise ConfigError(
                f"{adapter} {what}; export.py merges LoRA, rsLoRA and DoRA on linear layers"
            )


def put_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter on it, unmerged; the adapter's weights are raised to float32.

    The model may be without weights (on the meta device); the adapter's are on the CPU then.

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
        # peft leaves the adapter on the device of the base weights, which may be none.
        found = model.load_state_dict(weights, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{adapter} does not fit its base model: {reason}") from None
    odd = [*found.unexpected_keys, *(name for name in found.missing_keys if ".lora_" in name)]
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
        (into / shard.name).chmod(0o644)
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
    """Name of the weight in the base's files -> peft's layer over it, which has no base weight."""
    from peft.tuners.lora import Linear, LoraLayer

    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            if not isinstance(layer, Linear):
                raise ConfigError(f"the adapter changes {name}, which is not a linear layer")
            found[f"{name}.weight"] = layer
    return found


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
    """The base's end tokens and greedy decoding: its sampling habits (temperature, repetition
    penalty) were no part of the training."""
    from transformers import GenerationConfig

    known = GenerationConfig()
    if (base / "generation_config.json").is_file():
        known = GenerationConfig.from_pretrained(base)
    return GenerationConfig(
        do_sample=False,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def load_tokenizer(adapter: Path, base: Path) -> Any:
    """The tokenizer that the adapter was trained with: its own copy, else the base's."""
    from transformers import AutoTokenizer

    own = all((adapter / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = AutoTokenizer.from_pretrained(adapter if own else base)
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer of {adapter} and {base} has no chat template")
    return tokenizer
