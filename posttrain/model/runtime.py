"""Start Unsloth and switch its modes. The only file that imports unsloth.

With no GPU, Unsloth runs on the CPU through the same calls.
"""

import contextlib
import functools
import gc
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any

from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.base.paths import ROOT
from posttrain.base.process import share_the_processor
from posttrain.base.processor import cores, free_cores
from posttrain.model.device import Device


def start(verbose: bool, threads: int | None) -> Device:
    """Import Unsloth, which must come before trl, transformers and peft, and find the device.

    Without a number of `threads`, torch takes OMP_NUM_THREADS, else the cores that this process may
    use, whatever the load: results depend on it. Raises ConfigError if Unsloth refuses to start.
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
    gc.freeze()  # the libraries' objects stay: traversing them takes seconds when the process ends

    chosen = threads is None and "OMP_NUM_THREADS" not in os.environ
    if threads or chosen:
        torch.set_num_threads(threads or cores())
    if not verbose:
        hush_libraries()
        datasets.disable_progress_bars()
    if not torch.cuda.is_available():
        _share_keys_and_values()
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


@functools.cache  # once
def _share_keys_and_values() -> None:
    """Let attention without gradients, as in decoding and scoring, read keys and values in place.

    Beside a mask, transformers copies every key and value for each query head that shares it,
    because CUDA's kernels take no groups together with a mask. torch's kernel for the CPU does, and
    gives the same numbers to the last bit. At Qwen2.5-0.5B's 14 query heads on 2 of keys and
    values, 24 rows and 300 tokens, the copies take nine tenths of a decoding step's attention.
    """
    import torch

    sdpa_attention: Any = importlib.import_module("transformers.integrations.sdpa_attention")
    usual = sdpa_attention.use_gqa_in_sdpa

    def use_groups(attention_mask: Any, key: Any, value: Any) -> bool:
        if key.device.type == "cpu" and not torch.is_grad_enabled():
            return bool(key.shape[-1] == value.shape[-1])
        return bool(usual(attention_mask, key, value))

    sdpa_attention.use_gqa_in_sdpa = use_groups


def hush_libraries() -> None:
    """Hide the progress bars and warnings of libraries from now on."""
    import transformers

    libraries = "transformers trl peft datasets accelerate bitsandbytes torchao unsloth"
    for library in libraries.split():
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Hide what libraries print, but show it all if they fail with an error that is not ours."""
    if verbose:
        yield
        return
    held, failed = io.StringIO(), True
    try:
        with (
            contextlib.redirect_stdout(held),
            contextlib.redirect_stderr(held),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
        failed = False
    except PostTrainError:  # its message says what is wrong
        failed = False
        raise
    finally:
        if failed:
            sys.stderr.write(held.getvalue())


def has_gpu_modules() -> bool:
    """Whether Unsloth trains with its own kernels, as it does on a GPU."""
    return "unsloth.models" in sys.modules


@contextlib.contextmanager
def full_precision(policy: Any, arguments: Any) -> Iterator[None]:
    """Keep a float32 policy in float32 while its trainer is built, if bf16 and fp16 are both off.
    On a GPU Unsloth's trainers would switch mixed precision on, unless this variable is "bfloat16",
    by which they take the precision of the weights as right."""
    import torch

    if arguments.bf16 or arguments.fp16 or policy.dtype != torch.float32:
        yield
        return
    evaluation = arguments.bf16_full_eval
    with restored(os.environ, "UNSLOTH_MIXED_PRECISION"):
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
        yield
    arguments.bf16_full_eval = evaluation


@contextlib.contextmanager
def restored(values: MutableMapping[str, Any], name: str) -> Iterator[None]:
    """Undo what the block does to one value: an attribute in vars(...), or a variable."""
    earlier = values.get(name)
    try:
        yield
    finally:
        values.pop(name, None)
        if earlier is not None:
            values[name] = earlier


def training_mode(policy: Any) -> None:
    """Put the policy in training mode, in which Unsloth pads and attends as training does."""
    unsloth().for_training(policy)


@contextlib.contextmanager
def inference_mode(policy: Any) -> Iterator[None]:
    """Put the policy in Unsloth's inference mode, without gradients, and back in training mode."""
    import torch

    unsloth().for_inference(policy)
    try:
        with torch.no_grad():
            yield
    finally:
        training_mode(policy)


def unsloth() -> Any:
    """Unsloth's FastLanguageModel. After start()."""
    from unsloth import FastLanguageModel

    return FastLanguageModel


def hub_name(name: str, load_in_4bit: bool) -> str:
    """The repository that Unsloth loads for a hub model: on a GPU a pre-quantised one for 4-bit
    weights, at its newest commit."""
    if not has_gpu_modules():  # importing them patches trl for a GPU
        return name
    loader = importlib.import_module("unsloth.models.loader_utils")
    return str(loader.get_model_name(name, load_in_4bit))
