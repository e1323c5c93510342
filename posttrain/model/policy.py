"""Load the policy for training, and save what was trained.

The policy is the base model plus a LoRA adapter; the reference is the policy as loaded: the same
weights with the adapter off or, where that started with an effect, as it was then.
"""

from pathlib import Path
from typing import Any

from posttrain.base.disk import disk_full_error, is_disk_full
from posttrain.base.errors import ConfigError, first_line
from posttrain.base.files import model_fingerprint
from posttrain.model import adapter, runtime
from posttrain.model.fused_lora import fuse
from posttrain.model.merged import choose_weights
from posttrain.model.pretrained import (
    TRUSTED,
    load_tokenizer,
    local_or_hub,
    save_tokenizer,
    set_up_generation,
    torch_dtype,
    up_to_positions,
)
from posttrain.model.vllm import vllm_arguments
from posttrain.settings import Lora, Model, RolloutModel, Training, adapters
from posttrain.settings.model import MOVED


def base_weights(model: Model) -> str:
    """The weights that a run starts from: a folder's fingerprint, or hub repository and commit.

    With `model.adapter`, its fingerprint follows.

    Raises:
        ConfigError: the repository cannot be reached.
    """
    name = local_or_hub(model.name)
    if model.adapter is not None:
        start = model_fingerprint(adapters.find_adapter(model.adapter))
        return f"{base_weights(model.model_copy(update={'adapter': None}))} + {start}"
    if Path(name).is_dir():
        return model_fingerprint(Path(name))
    from huggingface_hub import hf_hub_download

    repository = runtime.hub_name(name, model.load_in_4bit)
    revision = model.revision if repository.lower() == name.lower() else None
    try:
        config = Path(hf_hub_download(repository, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name: '{repository}' is not in reach: {first_line(error)}"
        ) from None
    return f"{repository}@{config.parent.name}"


def load(
    model: Model, lora: Lora, training: Training, verbose: bool, beyond: int = 0
) -> tuple[Any, Any]:
    """The policy, a PeftModel with a new adapter or that of `model.adapter`, and its tokenizer.

    `beyond` is how many tokens a prompt and a reply that are scored may be longer than
    `model.max_seq_length`: on a GPU Unsloth silently cuts what is longer than its limit.
    """
    from transformers import set_seed

    unsloth = runtime.unsloth()
    set_seed(training.seed)
    from_vllm = vllm_arguments(model, lora)
    checkpointing = "unsloth" if training.gradient_checkpointing else False
    name = local_or_hub(model.name)
    start = adapters.find_adapter(model.adapter) if model.adapter else Path(name)
    longest = up_to_positions(name, model.revision, model.max_seq_length + beyond)
    with runtime.quiet(verbose), adapter.with_base_path(start, name) as folder:
        policy, tokenizer = unsloth.from_pretrained(
            str(folder),
            max_seq_length=max(model.max_seq_length, longest),
            dtype=torch_dtype(model.dtype),
            load_in_4bit=model.load_in_4bit,
            revision=model.revision,
            use_gradient_checkpointing=checkpointing,
            **TRUSTED,
            **from_vllm,
        )
        if not model.adapter:
            policy = unsloth.get_peft_model(
                policy,
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_rslora=lora.use_rslora,
                use_dora=lora.use_dora,
                init_lora_weights=True if lora.init == "default" else lora.init,
                use_gradient_checkpointing=checkpointing,
                random_state=training.seed,
            )
        if model.adapter or lora.init in MOVED:
            adapter.remember_start(policy)
        if not runtime.has_gpu_modules():
            fuse(policy)
    tokenizer = set_up_generation(policy, tokenizer, f"model.name: '{model.name}'")
    # Unsloth sets its own limit on a GPU, which would be saved with the adapter.
    tokenizer.model_max_length = load_tokenizer(model).model_max_length
    if isinstance(model, RolloutModel) and not from_vllm:
        choose_weights(policy, model.rollout_weights, keep=True)
    else:
        choose_weights(policy, "auto", keep=False)
    return policy, tokenizer


def drop_reference_copy(policy: Any) -> None:
    """Remove the copy of the adapter that stock trl adds as its reference.

    Without it trl scores the reference with the adapter off, which is the same for an adapter that
    starts with no effect. For the other kinds see posttrain/model/adapter.py.
    """
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")


def save_adapter(policy: Any, tokenizer: Any, folder: Path) -> None:
    """Write the adapter and the tokenizer, in safetensors and JSON.

    Raises:
        CheckpointError: the disk is full.
    """
    tokenizer.padding_side = "left"  # Unsloth's trainers and modes change it
    try:
        adapter.save(policy, folder)
        save_tokenizer(tokenizer, folder)
    except Exception as error:  # safetensors and torch wrap the system's error, each in its own
        if not is_disk_full(error, folder.parent):
            raise
        raise disk_full_error(folder.parent) from error
