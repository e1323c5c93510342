"""Load the policy for training, with vLLM for its rollouts or without, and save what was trained.

The policy is the base model plus a LoRA adapter; the reference is the policy as loaded: the same
weights with the adapter off or, where that started with an effect, as it was then.
"""

import importlib.metadata
import types
from pathlib import Path
from typing import Any

from posttrain.base.disk import disk_full_error, is_disk_full
from posttrain.base.errors import ConfigError, first_line, hub_errors
from posttrain.base.files import model_fingerprint
from posttrain.base.paths import run_command
from posttrain.model import adapter, pretrained, runtime
from posttrain.model.merged import choose_weights, compute_type
from posttrain.settings import Lora, Model, RolloutModel, Training, adapters


def base_weights(model: Model) -> str:
    """The weights that a run starts from: a folder's fingerprint, or hub repository and commit, and
    then the fingerprint of `model.adapter`. Raises ConfigError if the hub cannot be reached."""
    name = pretrained.local_or_hub(model.name)
    start = ""
    if model.adapter:
        start = f" + {model_fingerprint(adapters.find_adapter(model.adapter))}"
    if Path(name).is_dir():
        return model_fingerprint(Path(name)) + start
    from huggingface_hub import hf_hub_download

    repository = runtime.hub_name(name, model.load_in_4bit)
    revision = model.revision if repository.lower() == name.lower() else None
    try:
        config = Path(hf_hub_download(repository, "config.json", revision=revision))
    except hub_errors(ValueError) as error:
        raise ConfigError(
            f"model.name: '{repository}' is not in reach: {first_line(error)}"
        ) from None
    return f"{repository}@{config.parent.name}{start}"


def check_vllm(model: Model) -> None:
    """Raise ConfigError where a config requires vLLM and it is not installed."""
    always = isinstance(model, RolloutModel) and model.fast_inference == "always"
    if always and not _has_vllm():
        raise ConfigError(
            f"model.fast_inference = always: this environment has no vLLM. {run_command()} --vllm "
            "grpo ... makes one that has and trains in it; auto or never train without"
        )


def _has_vllm() -> bool:
    """Whether vLLM is installed. Not by its import, which Unsloth hides where it cannot work."""
    return any(importlib.metadata.distributions(name="vllm"))


def vllm_arguments(model: Model, lora: Lora) -> dict[str, Any]:
    """Arguments for loading a model whose rollouts are sampled with vLLM; empty without vLLM.
    Raises ConfigError where a config requires vLLM and there is no GPU."""
    import torch

    if not isinstance(model, RolloutModel) or model.fast_inference == "never":
        return {}
    if not (_has_vllm() and torch.cuda.is_available()):
        if model.fast_inference == "auto":
            return {}
        raise ConfigError(
            "model.fast_inference = always: vLLM needs a GPU, and there is none; use auto or never"
        )
    rank = max(8, 1 << (lora.r - 1).bit_length())  # vLLM takes powers of two
    return {
        "fast_inference": True,
        "max_lora_rank": rank,
        "gpu_memory_utilization": model.gpu_memory_utilization,
    }


def load(
    model: Model, lora: Lora, training: Training, verbose: bool, beyond: int = 0
) -> tuple[Any, Any]:
    """The policy, a PeftModel with a new adapter or that of `model.adapter`, and its tokenizer.
    What is scored may be `beyond` tokens longer than `model.max_seq_length`: on a GPU Unsloth
    silently cuts what is longer than its limit."""
    from transformers import set_seed

    set_seed(training.seed)
    from_vllm = vllm_arguments(model, lora)
    checkpointing = "unsloth" if training.gradient_checkpointing else False
    name = pretrained.local_or_hub(model.name)
    start = adapters.find_adapter(model.adapter) if model.adapter else Path(name)
    longest = pretrained.up_to_positions(name, model.revision, model.max_seq_length + beyond)
    with runtime.quiet(verbose), adapter.with_base_path(start, name) as folder:
        try:
            policy, tokenizer = runtime.unsloth().from_pretrained(
                str(folder),
                max_seq_length=max(model.max_seq_length, longest),
                load_in_4bit=model.load_in_4bit,
                revision=model.revision,
                use_gradient_checkpointing=checkpointing,
                **pretrained.safe_options(model.dtype),
                **from_vllm,
            )
        except hub_errors() as error:
            raise ConfigError(f"model.name: cannot load '{name}': {first_line(error)}") from error
        if model.adapter:
            adapter.remember_start(policy)
        else:
            policy = runtime.unsloth().get_peft_model(
                policy,
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_rslora=lora.use_rslora,
                use_dora=lora.use_dora,
                use_gradient_checkpointing=checkpointing,
                random_state=training.seed,
            )
        if not runtime.has_gpu_modules():
            fuse(policy)
    tokenizer = pretrained.set_up_generation(policy, tokenizer, f"model.name: '{model.name}'")
    # Unsloth sets its own limit on a GPU, which would be saved with the adapter.
    tokenizer.model_max_length = pretrained.load_tokenizer(model).model_max_length
    rollouts = model.rollout_weights if isinstance(model, RolloutModel) and not from_vllm else None
    choose_weights(policy, rollouts or "auto", keep=rollouts is not None)
    return policy, tokenizer


def fuse(policy: Any) -> None:
    """Let the plain LoRA layers of a float32 or bfloat16 policy add their update in one product.

    peft computes W x, then (B A x) scale, then their sum: three passes over the output, and one
    more over its gradient; in bfloat16 it also converts x and the update to float32 and back. Here
    the scale and the sum are part of the product with B, as BLAS has it (C = alpha A B + C), and
    the small A and B are converted instead, as by autocast. On a GPU Unsloth's kernels do the same.
    Only the rounding differs from peft's. DoRA, a LoRA bias and float16 are left to peft.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    for layer in policy.modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        plain = not layer.lora_variant and not any(layer.lora_bias.values())
        fast = compute_type(base) in (torch.float32, torch.bfloat16)
        if plain and isinstance(base, torch.nn.Linear) and fast:
            layer.forward = types.MethodType(_fused_forward, layer)


def _fused_forward(layer: Any, x: Any, *arguments: Any, **options: Any) -> Any:
    """What peft's forward computes of x, of shape (..., in): W x + scale B A x, (..., out)."""
    import torch

    names = layer.active_adapters
    # Of 4-bit weights in float32, trl trains the adapter in bfloat16, to which peft converts x.
    same = len(names) == 1 and layer.lora_A[names[0]].weight.dtype in (x.dtype, torch.float32)
    if layer.disable_adapters or layer.merged or not same or torch.is_autocast_enabled("cpu"):
        return type(layer).forward(layer, x, *arguments, **options)
    (name,) = names
    base = layer.base_layer(x, *arguments, **options)
    down, up = (each[name].weight.to(x.dtype) for each in (layer.lora_A, layer.lora_B))
    low = torch.nn.functional.linear(layer.lora_dropout[name](x), down)
    flat = base.reshape(-1, base.shape[-1]), low.reshape(-1, low.shape[-1])
    return torch.addmm(*flat, up.t(), alpha=layer.scaling[name]).view(base.shape)


def save_adapter(policy: Any, tokenizer: Any, folder: Path) -> None:
    """Write the adapter and the tokenizer; raises CheckpointError if the disk is full."""
    tokenizer.padding_side = "left"  # Unsloth's trainers and modes change it
    try:
        adapter.save(policy, folder)
        pretrained.save_tokenizer(tokenizer, folder)
    except Exception as error:  # safetensors and torch wrap the system's error, each in its own
        if not is_disk_full(error, folder.parent):
            raise
        raise disk_full_error(folder.parent) from error
