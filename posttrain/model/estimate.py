"""An estimate of a run's peak memory from the shapes of its model: a sum, not a measurement.

peak = weights + adapter + merged + max(step, generation, scoring) + overhead
step = gradients + kept + max(layer, logits)

Each term is what the installed trl 1.15 and Unsloth 2026.10 hold when every row is as long as
`model.max_seq_length`, from their sources (paths are of site-packages). w is the bytes of a value:
4 in float32, else 2. bench/memory.py holds the sums against measured peaks on a CPU.

weights     linear layers x w, in 4 bits x 4.127 / 8 (NF4: 4 bits and 0.127 of scales, QLoRA,
            https://arxiv.org/abs/2305.14314, section 3); embedding x w, never quantised, which is
            the head too where tied
adapter     LoRA weights x (4 + 8 for AdamW's two moments, 2 where they are 8-bit)
merged      GRPO: adapted layers x w, the merged weights that rollouts are sampled from; none where
            model.rollout_weights is adapter, or auto and more than a quarter of the card
gradients   LoRA weights x 4, with gradient accumulation: from one micro-batch to the next. Without
            it they come as the kept vectors go
kept        what the forward pass keeps for the backward: with checkpointing one vector a token and
            layer (https://arxiv.org/abs/1604.06174); of these a GPU holds three layers and the host
            the rest (unsloth_zoo/gradient_checkpointing.py, UnslothCheckpointFunction). Without it
            all that a layer saves: 6 hidden + 2 key-value vectors and the MLP's 4 intermediate ones
            (2 in Unsloth's kernel, unsloth/kernels/fast_lora.py, LoRA_MLP)
layer       the layer in its backward pass: what it saves, recomputed with checkpointing, and the
            gradients of 2 intermediate vectors (1 in Unsloth's kernel, which overwrites); and
            its largest linear layer, unpacked
logits      the head, in chunks: trl/trainer/utils.py, add_fused_lm_head. Unsloth's kernel has one
            buffer of up to 512 x vocabulary x 4 bytes, or of 256 MB on cards up to 24 GB
            (unsloth_zoo/fused_losses/fused_linear.py); on a CPU logits and probabilities in 32 bits
            of up to two chunks of 2^24, the last and the next (unsloth_zoo/cpu/ops.py,
            _ChunkedLogProbs). And three vectors a scored token: its hidden state and gradients. In
            DPO every token counts as scored, in GRPO those of completions; GRPO's loss takes the
            micro-batch at once
generation  GRPO: keys and values of all rollouts, and a decoding step's logits in w and four times
            in 32 bits (scores, log-probabilities, processed scores, probabilities); or reading the
            prompts, 3 hidden and 4 intermediate vectors a token (3 in Unsloth's kernel). On a GPU
            the cache grows by 512 tokens (unsloth/models/llama.py, KV_CACHE_INCREMENT). Scoring
            problems in batches of evaluation.batch_size counts alike; without one its size follows
            from the free memory
scoring     DPO: posttrain/model/log_probs.py, token_log_probs reads 8 rows at once, or those of
            evaluation.batch_size: a layer without gradients as in reading the prompts, and its
            largest linear layer, unpacked; or the head, in chunks as in a step, and the hidden
            states twice, as they are and those of the scored tokens
overhead    a GPU's context and libraries 0.8 GB, a guess; on a CPU Python, its libraries, the
            tokenizer and the data, which bench/memory.py measures

A DPO pair is two rows. Scoring DPO's reference takes less than a step and is not a term. Unsloth
packs GRPO's rows and computes a group's prompt once, but first compares that with complete rows,
which are counted. No CPU can check the terms of a GPU alone: the layers offloaded, the kernels'
buffers, the cache's growth, 8-bit moments, the context, and holes in PyTorch's pool of memory.
"""

from dataclasses import dataclass, replace

from posttrain.base.processor import computes_in_bfloat16
from posttrain.model.device import ROWS_AT_ONCE
from posttrain.model.merged import SHARE
from posttrain.model.shape import Shape
from posttrain.settings import DPOSettings, GRPOSettings
from posttrain.settings import TrainingSettings as Settings

GB = 2**30
NF4_BYTES = 4.127 / 8


@dataclass(frozen=True)
class Device:
    """In what a GPU, with Unsloth's kernels, and a CPU, with plain transformers, differ."""

    saved: int  # intermediate vectors of the MLP that a layer keeps for its backward pass
    gradients: int  # those that the backward pass adds
    reading: int  # those that a forward pass without gradients holds at once
    layers_kept: int | None  # layers whose input stays with checkpointing; None is all
    head_logits: int | None  # logits that the head holds at once; None is those of 512 tokens
    head_bytes: int  # bytes that each of them takes
    cache_growth: int  # tokens by which the cache of keys and values grows at once
    small_moments: bool  # 8-bit optimizers have 8-bit moments
    overhead: float  # bytes that are there without a model
    auto: int = 2  # bytes of a weight with model.dtype=auto


GPU = Device(2, 1, 3, 3, None, 4, 512, True, 0.8 * GB)
CPU = Device(4, 2, 4, None, 2 * 2**24, 8, 0, False, 1.0 * GB)


def this_cpu() -> Device:
    """CPU with the number type that model.dtype=auto takes on this one."""
    return replace(CPU, auto=2 if computes_in_bfloat16() else 4)


def estimate(settings: Settings, shape: Shape, device: Device = GPU) -> dict[str, float]:
    """The terms of the sum above, in GB of 2^30 bytes, after their `peak`."""
    training = settings.training
    width = {"float32": 4, "auto": device.auto}.get(settings.model.dtype, 2)
    layer_bytes = NF4_BYTES if settings.model.load_in_4bit else width
    lora = shape.layers * settings.lora.r * sum(a + b for a, b in _adapted(settings, shape))
    moments = 2 if "8bit" in training.optim and device.small_moments else 8
    start = 4 if settings.model.adapter else 0  # a copy of what it started from, as the reference
    terms = {
        "weights": shape.layer_weights * layer_bytes + shape.embeddings * width,
        "adapter": lora * (4 + moments + start),
        "merged": _merged(settings, shape, width),
        "gradients": lora * (4 if training.gradient_accumulation_steps > 1 else 0),
        **_step(settings, shape, device, width),
        "generation": _generation(settings, shape, device, width),
        "scoring": _scoring(settings, shape, device, width),
        "overhead": device.overhead,
    }
    terms = {name: size / GB for name, size in terms.items()}
    always = sum(terms[name] for name in ("weights", "adapter", "merged", "overhead"))
    return {"peak": always + max(phases(terms).values()), **terms}


def phases(terms: dict[str, float]) -> dict[str, float]:
    """What each phase of a run needs besides the weights and the adapter; the largest counts."""
    step = terms["gradients"] + terms["kept"] + max(terms["layer"], terms["logits"])
    return {"step": step, "generation": terms["generation"], "scoring": terms["scoring"]}


def _adapted(settings: Settings, shape: Shape) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers of a block that get an adapter."""
    return [shape.modules()[m] for m in settings.lora.target_modules if m in shape.modules()]


def _merged(settings: Settings, shape: Shape, width: int) -> float:
    if not isinstance(settings, GRPOSettings) or settings.model.rollout_weights == "adapter":
        return 0.0
    needed = float(shape.layers * sum(a * b for a, b in _adapted(settings, shape)) * width)
    room = SHARE * settings.model.min_gpu_memory_gb * GB
    return 0.0 if settings.model.rollout_weights == "auto" and 0 < room < needed else needed


def _step(settings: Settings, shape: Shape, device: Device, width: int) -> dict[str, float]:
    rows = settings.training.per_device_train_batch_size
    sequences = 2 if isinstance(settings, DPOSettings) else 1
    tokens = scored = rows * sequences * settings.model.max_seq_length
    if isinstance(settings, GRPOSettings):
        scored = rows * settings.training.max_completion_length
    saved = 6 * shape.hidden + 2 * shape.key_value + device.saved * shape.intermediate
    gradients = device.gradients * shape.intermediate
    if settings.training.gradient_checkpointing:
        kept, layer = (device.layers_kept or shape.layers) * shape.hidden, saved + gradients
    else:
        kept, layer = shape.layers * saved, gradients
    return {
        "kept": tokens * kept * width,
        "layer": (tokens * layer + _largest(shape)) * width,
        "logits": _head(scored, shape, device) + 3 * scored * shape.hidden * width,
    }


def _generation(settings: Settings, shape: Shape, device: Device, width: int) -> float:
    if not isinstance(settings, GRPOSettings):
        return 0.0
    training = settings.training
    micro_batches = training.steps_per_generation or training.gradient_accumulation_steps
    completion = max(training.max_completion_length, settings.evaluation.max_new_tokens)
    prompt = settings.model.max_seq_length - training.max_completion_length
    rollouts = training.per_device_train_batch_size * micro_batches
    rows = max(rollouts, settings.evaluation.batch_size or 0)
    a_token = shape.layers * 2 * shape.key_value * width
    reading = (3 * shape.hidden + device.reading * shape.intermediate) * width
    decoding = (prompt + completion + device.cache_growth) * a_token + shape.vocab * (width + 16)
    return rows * max(decoding, prompt * (a_token + reading))


def _scoring(settings: Settings, shape: Shape, device: Device, width: int) -> float:
    if isinstance(settings, GRPOSettings):
        return 0.0
    tokens = (settings.evaluation.batch_size or ROWS_AT_ONCE) * settings.model.max_seq_length
    layer = tokens * (3 * shape.hidden + device.reading * shape.intermediate) + _largest(shape)
    return max(layer * width, _head(tokens, shape, device) + 2 * tokens * shape.hidden * width)


def _largest(shape: Shape) -> int:
    """Weights of the largest linear layer of a block."""
    return max(a * b for a, b in shape.modules().values())


def _head(scored: int, shape: Shape, device: Device) -> float:
    at_once = device.head_logits or 512 * shape.vocab
    return min(scored * shape.vocab, at_once) * device.head_bytes
