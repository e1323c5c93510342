"""Load, adapt and save the policy, and switch its modes. The only file that imports unsloth.

The policy is the base model plus a LoRA adapter; the reference is the policy as loaded: the same
weights with the adapter off or, where that started with an effect, as it was then. With no GPU,
Unsloth trains on the CPU through the same calls.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.base.disk import disk_full_error, is_disk_full
from posttrain.base.errors import ConfigError, PostTrainError, first_line
from posttrain.base.files import model_fingerprint
from posttrain.base.paths import ROOT
from posttrain.base.process import share_the_processor
from posttrain.base.processor import cores, free_cores
from posttrain.data.render import end_of_reply, limit_token_ids
from posttrain.model import adapter
from posttrain.model.device import Device
from posttrain.model.fused_lora import fuse
from posttrain.model.merged import choose_weights
from posttrain.model.trust import check_model_folder
from posttrain.model.vllm import vllm_arguments
from posttrain.settings import Lora, Model, RolloutModel, Training, adapters

# Run no Python code and read no pickle of a model, wherever it comes from.
TRUSTED = {"trust_remote_code": False, "use_safetensors": True}
CONTEXT = 4096  # tokens to load a model for, unless it takes fewer or was trained on more
LIBRARIES = ("transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "unsloth")


def start(verbose: bool, threads: int | None) -> Device:
    """Import Unsloth, which must come before trl, transformers and peft, and find the device.

    Without a number of `threads`, torch takes OMP_NUM_THREADS, else the cores that this process may
    use, whatever the load: results depend on the number.

    Raises:
        ConfigError: Unsloth refuses to start here; holds its message.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(ROOT / "outputs" / ".unsloth_cache"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's, and so the doctor's
    share_the_processor()
    with quiet(verbose):
        try:
            importlib.import_module("unsloth")
        except (ImportError, NotImplementedError) as error:
            raise ConfigError(f"Unsloth cannot start here: {error}") from error
        import datasets
        import torch
        import transformers

    chosen = threads is None and "OMP_NUM_THREADS" not in os.environ
    if threads or chosen:
        torch.set_num_threads(threads or cores())
    if not verbose:
        for library in LIBRARIES:
            logging.getLogger(library).setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        warnings.filterwarnings("ignore")
    if not torch.cuda.is_available():
        bf16 = bool(importlib.import_module("unsloth").is_bfloat16_supported())
        if chosen:
            _warn_of_load(torch.get_num_threads())
        return Device("CPU", 0.0, bf16, torch.get_num_threads())
    properties = torch.cuda.get_device_properties(0)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(properties.name, properties.total_memory / 2**30, bf16)


def _warn_of_load(threads: int) -> None:
    """Print what to do where other programs use cores that torch's threads need."""
    if threads > 1 and (free := free_cores()) < threads:
        print(
            f"note: other programs keep cores busy, {free} of {threads} are free: a step waits for "
            f"its slowest thread, so OMP_NUM_THREADS={free} may be faster (run.threads={free} for "
            "a training run)",
            file=sys.stderr,
        )


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Hide what libraries print, but show it all if they fail with an error that is not ours."""
    if verbose:
        yield
        return
    held, succeeded = io.StringIO(), False
    try:
        with (
            contextlib.redirect_stdout(held),
            contextlib.redirect_stderr(held),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
        succeeded = True
    except PostTrainError:  # says itself what is wrong
        succeeded = True
        raise
    finally:
        if not succeeded and (printed := held.getvalue().strip()):
            print(printed, file=sys.stderr)


def local_or_hub(name: str) -> str:
    """A model folder as an absolute path, or the name of a hub model as it is.

    A relative path is looked for in the current folder and in the project.

    Raises:
        ConfigError: there is no such folder, or it could run code.
    """
    for candidate in (Path(name).expanduser(), ROOT / name):
        if candidate.is_dir():
            check_model_folder(candidate.resolve(), "model.name")
            return str(candidate.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        places = " and ".join(dict.fromkeys((str(Path.cwd()), str(ROOT))))
        raise ConfigError(f"model.name: there is no folder '{name}' (looked in {places})")
    return name


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer, with left padding.

    Raises:
        ConfigError: it is neither a model folder nor a hub model that can be reached.
    """
    name = local_or_hub(model.name)
    from transformers import AutoTokenizer  # takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model.revision, padding_side="left", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name: cannot load the tokenizer of '{name}': {first_line(error)}"
        ) from None
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name: '{name}' has no chat template; use an instruct model")
    if tokenizer.eos_token is None:
        raise ConfigError(f"model.name: the tokenizer of '{name}' has no end-of-sequence token")
    end_at_replies(tokenizer)
    return tokenizer


def check_architecture(model: Model, extra: dict[str, Any]) -> None:
    """Check the arguments of `training.extra` that need a model of some architecture.

    Raises:
        ConfigError: this model has another.
    """
    experts, head = extra.get("router_aux_loss_coef"), extra.get("cast_lm_head_to_fp32")
    if not experts and not head:
        return
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        local_or_hub(model.name), revision=model.revision, trust_remote_code=False
    ).get_text_config()
    if head and config.tie_word_embeddings:
        raise ConfigError(
            f"training.extra.cast_lm_head_to_fp32: the output layer of '{model.name}' is its "
            "embedding, which trl cannot cast under an adapter; leave it out"
        )
    if experts and not hasattr(config, "output_router_logits"):
        raise ConfigError(
            f"training.extra.router_aux_loss_coef: '{model.name}' is not a mixture of experts, so "
            "it has no router to balance; leave it out"
        )


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

    repository = name
    if _has_gpu_modules():  # importing them patches trl for a GPU
        # from_pretrained takes 4-bit weights from another repository, at its newest commit.
        mapping = importlib.import_module("unsloth.models.loader_utils")
        repository = mapping.get_model_name(name, model.load_in_4bit)
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
    `model.max_seq_length`: on a GPU Unsloth cuts what is longer than it was told, without a word.
    """
    from transformers import set_seed
    from unsloth import FastLanguageModel

    set_seed(training.seed)
    from_vllm = vllm_arguments(model, lora)
    checkpointing = "unsloth" if training.gradient_checkpointing else False
    with quiet(verbose), _start(model) as start:
        base, tokenizer = FastLanguageModel.from_pretrained(
            str(start),
            max_seq_length=_longest(model, beyond),
            dtype=_torch_dtype(model.dtype),
            load_in_4bit=model.load_in_4bit,
            revision=model.revision,
            use_gradient_checkpointing=checkpointing,
            **TRUSTED,
            **from_vllm,
        )
        policy = (
            base
            if model.adapter
            else FastLanguageModel.get_peft_model(
                base,
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_gradient_checkpointing=checkpointing,
                random_state=training.seed,
                **adapter.peft_arguments(lora),
            )
        )
        if model.adapter or lora.init in adapters.MOVED:
            adapter.remember_start(policy)
        if not _has_gpu_modules():
            fuse(policy)
    tokenizer = _set_up_generation(policy, tokenizer, f"model.name: '{model.name}'")
    # Unsloth sets its own limit on a GPU, which would be saved with the adapter.
    tokenizer.model_max_length = load_tokenizer(model).model_max_length
    if isinstance(model, RolloutModel) and not from_vllm:
        choose_weights(policy, model.rollout_weights, keep=True)
    else:
        choose_weights(policy, "auto", keep=False)
    return policy, tokenizer


@contextlib.contextmanager
def _start(model: Model) -> Iterator[str | Path]:
    """What Unsloth loads: a model, or an adapter folder that names its base as it is found here."""
    name = local_or_hub(model.name)
    if model.adapter is None:
        yield name
        return
    with adapter.with_base_found(adapters.find_adapter(model.adapter), name) as folder:
        yield folder


def _longest(model: Model, beyond: int) -> int:
    """Tokens that the policy is loaded for."""
    if not beyond:
        return model.max_seq_length
    wanted = model.max_seq_length + beyond
    longest = _up_to_positions(local_or_hub(model.name), model.revision, wanted)
    return max(model.max_seq_length, longest)


def _torch_dtype(name: str) -> Any:
    """The torch dtype of a setting; None lets Unsloth choose. It refuses the text 'float32'."""
    import torch

    return None if name == "auto" else getattr(torch, name)


def _has_gpu_modules() -> bool:
    """Whether Unsloth trains with its own kernels: without a GPU it has no such modules."""
    return "unsloth.models" in sys.modules


def context(name: str, trained: int, base: str | None = None) -> int:
    """Tokens of prompt and reply to load a model for that is asked something: `trained`, those that
    it was trained with, CONTEXT at least, as far as its positions go.

    `name` and `base` are as in load_for_scoring. After start().

    Raises:
        ConfigError: the model is not here and cannot be reached.
    """
    found = local_or_hub(name)
    if (Path(found) / adapters.CONFIG).is_file():
        found = base or adapters.base_of(Path(found))
    try:
        return _up_to_positions(found, None, max(trained, CONTEXT))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load the model '{found}': {first_line(error)} It is no folder here; check the "
            "name, or the way to the hub"
        ) from None


def _up_to_positions(name: str, revision: str | None, wanted: int) -> int:
    """`wanted` tokens, or the model's positions where these are fewer: Unsloth would stretch them
    without a word."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).to_dict()
    return int(min(wanted, config.get("max_position_embeddings") or wanted))


def load_for_scoring(
    name: str, load_in_4bit: bool, dtype: str, max_seq_length: int, base: str | None = None
) -> tuple[Any, Any]:
    """The model and tokenizer of a model folder, hub model or adapter folder, to generate with.

    An adapter is put on `base`, where one is named, instead of the model that it names itself.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from unsloth import FastLanguageModel

    found = local_or_hub(name)
    is_adapter = (Path(found) / adapters.CONFIG).is_file()
    there: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(found)
    if is_adapter:
        there = adapter.with_base_found(Path(found), base)
    with quiet(verbose=False), there as folder:
        try:
            model, tokenizer = FastLanguageModel.from_pretrained(
                str(folder),
                max_seq_length=max_seq_length,
                dtype=_torch_dtype(dtype),
                load_in_4bit=load_in_4bit,
                **TRUSTED,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"cannot load the model '{name}': {first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ConfigError(f"the model '{name}' has no chat template; use an instruct model")
    if is_adapter:
        choose_weights(model, "auto", keep=False)
    return model, _set_up_generation(model, tokenizer, f"the model '{name}'")


def _set_up_generation(policy: Any, tokenizer: Any, what: str) -> Any:
    """Set left padding, a padding token and all end tokens, remove the model's own sampling
    settings, and keep the output layer from being copied.

    Models come with sampling settings (Qwen2.5: temperature 0.7, repetition penalty 1.1), which
    generate() would use wherever the caller sets none. Ours come from the YAML alone. Returns the
    tokenizer. `what` is the model, for messages.

    Raises:
        ConfigError: the model has no embedding for the padding or end token.
    """
    from transformers import GenerationConfig

    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = end_tokens(policy.generation_config, tokenizer)
    end_at_replies(tokenizer)
    limit_token_ids(tokenizer, policy.get_input_embeddings().weight.shape[0], what)
    policy.generation_config = GenerationConfig(
        eos_token_id=sorted(ends | {tokenizer.eos_token_id}), pad_token_id=tokenizer.pad_token_id
    )
    if policy.device.type == "cpu":
        policy.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return tokenizer


def _contiguous(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the input of the output layer, of shape (B, n, H), if it is a view into longer rows.

    After a prompt transformers passes `hidden[:, -1:, :]`. torch multiplies such a view with a
    frozen weight row by row, and for bfloat16 on a CPU it copies the weight for every row: 272 MB
    at Qwen2.5-0.5B's vocabulary, where the input has 2 KB.
    """
    return (args[0].contiguous(), *args[1:])


def end_at_replies(tokenizer: Any) -> None:
    """Make the token that the chat template ends a reply with the tokenizer's end of sequence.

    trl puts that token after a reply in DPO. In Gemma, for one, it is that of a whole document,
    which the model does not write after a turn.
    """
    tokenizer.eos_token = end_of_reply(tokenizer) or tokenizer.eos_token


def end_tokens(declared: Any, tokenizer: Any) -> set[int]:
    """Ids that end a reply: the tokenizer's EOS and those that a GenerationConfig declares."""
    several = declared.eos_token_id
    several = several if isinstance(several, list) else [several]
    return {int(i) for i in [tokenizer.eos_token_id, *several] if i is not None}


def drop_reference_copy(policy: Any) -> None:
    """Remove the copy of the adapter that stock trl adds as its reference.

    Without it trl scores the reference with the adapter off, which is the same for an adapter that
    starts with no effect. For the other kinds see posttrain/model/adapter.py.
    """
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")


@contextlib.contextmanager
def full_precision(policy: Any, arguments: Any) -> Iterator[None]:
    """Keep a float32 policy in float32 while its trainer is built, if bf16 and fp16 are both off.

    On a GPU Unsloth's trainers would switch mixed precision on. They do not if this variable is
    "bfloat16", which tells them that the weights have the right precision already.
    """
    import torch

    variable = "UNSLOTH_MIXED_PRECISION"
    earlier = os.environ.get(variable)
    mixed = arguments.bf16 or arguments.fp16 or policy.dtype != torch.float32
    if not mixed:
        os.environ[variable] = "bfloat16"
    evaluation = arguments.bf16_full_eval
    try:
        yield
    finally:
        if not mixed:
            arguments.bf16_full_eval = evaluation
            if earlier is None:
                del os.environ[variable]
            else:
                os.environ[variable] = earlier


def training_mode(policy: Any) -> None:
    """Put the policy in training mode, in which Unsloth pads and attends as training does."""
    from unsloth import FastLanguageModel

    FastLanguageModel.for_training(policy)


@contextlib.contextmanager
def inference_mode(policy: Any) -> Iterator[None]:
    """Put the policy in Unsloth's inference mode, without gradients, and back in training mode."""
    import torch
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(policy)
    try:
        with torch.no_grad():
            yield
    finally:
        training_mode(policy)


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


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer without the way in which it was read on this machine."""
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)
