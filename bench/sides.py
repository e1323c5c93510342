"""Who builds the trainer: the project's own script, or stock trl with the same model and data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from eval.preference import Pair
from posttrain.data.pairs import load_pair_set, measure
from posttrain.data.problems import load_problems
from posttrain.model import policy, pretrained
from posttrain.run.folder import RunFolder
from posttrain.train import loop as training
from posttrain.train.arguments import build_arguments, owned_arguments
from scripts import dpo, grpo
from tests.pretend_gpu import installed

SCRIPTS: dict[str, Any] = {"dpo": dpo, "grpo": grpo}


@dataclass(frozen=True)
class Spec:
    """What to measure."""

    task: str
    """dpo or grpo."""
    side: str
    """project, stock or stock_16bit."""
    config: str
    """A YAML file of configs/."""
    overrides: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    cycles: int = 5
    """Measured steps; with several optimizer steps a generation, measured generations."""
    warmup: int = 2
    """Cycles before them."""
    memory_limit: float | None = None
    """GiB that PyTorch may take."""
    longest: bool = False
    """Every row as long as the config allows, to see the peak of memory."""
    flash: bool = True
    """false switches PyTorch's flash and cuDNN attention off, as on a T4."""
    lengths: str = "recorded"
    """Completions: recorded (forced to the recorded lengths), free, or fixed (none is generated:
    the same random tokens and rewards on every side, for comparing losses)."""
    adapter_seed: int | None = None
    """Start from this random adapter, the same on every side, instead of one that does nothing."""


def load_rows(task: str, settings: Any, tokenizer: Any, longest: bool = False) -> list[Any]:
    """The rows that the script would train on; with `longest` all as long as the config allows."""
    if task == "grpo":
        problems, _ = load_problems(settings.data)
        fitting = grpo.fitting(problems, tokenizer, settings, "training problems")
        if longest:  # by characters: the longest questions of the data
            fitting = sorted(fitting, key=lambda p: len(p.question), reverse=True)[:64]
        return fitting
    pairs = load_pair_set(settings.data, settings.prompt)
    sides = (pairs.train, pairs.held_out, pairs.validation)
    lengths = [measure(side, tokenizer) for side in sides]
    train, *_ = dpo.fitting(pairs, lengths, settings)
    if longest:
        train = [stretched(pair, tokenizer, settings.model.max_seq_length) for pair in train[:64]]
    return train


def stretched(pair: Any, tokenizer: Any, limit: int) -> Any:
    """The pair with both replies repeated until it nearly fills the limit (some tokens merge)."""
    prompt = measure([pair], tokenizer)[0].prompt

    def long(reply: str) -> str:
        ids = tokenizer(reply + "\n", add_special_tokens=False)["input_ids"]
        room = limit - prompt - 8
        text: str = tokenizer.decode((ids * (room // len(ids) + 1))[:room])
        return text

    return Pair(pair.prompt, long(pair.chosen), long(pair.rejected) + ".")


def build_project(spec: Spec, settings: Any, run: RunFolder) -> tuple[Any, Callable[[], Any]]:
    """The trainer of the project's script, and what trains it."""
    rows = load_rows(spec.task, settings, pretrained.load_tokenizer(settings.model), spec.longest)
    model, tokenizer = policy.load(settings.model, settings.lora, settings.training, False)
    run.open(fresh=False)
    if spec.task == "grpo":
        functions = grpo.load_rewards(settings, rows[0])
        trainer, _ = grpo.build_trainer(model, tokenizer, rows, settings, functions, run)
    else:
        trainer, _ = dpo.build_trainer(model, tokenizer, rows, settings, run)
    progress = SCRIPTS[spec.task].PROGRESS
    return trainer, lambda: training.train(trainer, settings, run, progress, None, {})


def build_stock(spec: Spec, settings: Any, run: RunFolder) -> tuple[Any, Callable[[], Any]]:
    """The same with trl, transformers, peft and bitsandbytes alone."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    if installed() or not torch.cuda.is_available():
        plain_head()
    set_seed(settings.training.seed)
    tokenizer = pretrained.load_tokenizer(settings.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = load_rows(spec.task, settings, tokenizer, spec.longest)
    bfloat = settings.model.dtype == "auto" or spec.side == "stock_16bit"
    dtype = torch.bfloat16 if bfloat else getattr(torch, settings.model.dtype)
    quantised = settings.model.load_in_4bit and spec.side == "stock"
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        pretrained.local_or_hub(settings.model.name),
        dtype=dtype,
        quantization_config=four_bit if quantised else None,
        attn_implementation="sdpa",
        device_map={"": 0} if torch.cuda.is_available() else None,
    )
    lora = settings.lora
    adapter = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    parts: dict[str, Any] = {"model": model, "peft_config": adapter}
    if spec.task == "grpo":
        parts["reward_funcs"] = list(grpo.load_rewards(settings, rows[0]).values())
    owned = owned_arguments(run, settings.run.name, [])
    trainer = trl_trainer(settings, rows, tokenizer, owned, **parts)
    return trainer, trainer.train


def trl_trainer(
    settings: Any, rows: list[Any], tokenizer: Any, owned: dict[str, Any], **parts: Any
) -> Any:
    """trl's own trainer on the rows; `parts` has the model, and the rewards of GRPO."""
    import trl
    from datasets import Dataset

    training = settings.training
    if settings.method == "grpo":
        owned["reward_weights"] = list(settings.rewards.values())
        arguments, _ = build_arguments(trl.GRPOConfig, training, owned, True)
        prompts = [
            {"prompt": grpo.conversation(p.question, settings.prompt), "answer": p.answer}
            for p in rows
        ]
        kind, dataset = trl.GRPOTrainer, Dataset.from_list(prompts)
    else:
        owned["max_length"] = settings.model.max_seq_length
        # trl cannot put pairs of like length together: it drops the column with their lengths.
        order = training.train_sampling_strategy.replace("group_by_length", "random")
        any_length = training.model_copy(update={"train_sampling_strategy": order})
        arguments, _ = build_arguments(trl.DPOConfig, any_length, owned, True)
        kind, dataset = trl.DPOTrainer, Dataset.from_list(dpo.trainer_rows(rows, tokenizer))
    return kind(args=arguments, train_dataset=dataset, processing_class=tokenizer, **parts)


def plain_head() -> None:
    """Let stock trl compute log-probabilities on a CPU: its own head is a Triton kernel for GPUs.

    The same quantities from whole rows of logits; only where there is no real GPU.
    """
    import torch
    from trl.trainer import utils

    class PlainHead:
        @staticmethod
        def apply(
            hidden: Any,  # (tokens, hidden)
            weight: Any,  # (vocabulary, hidden)
            bias: Any,
            targets: Any,  # (tokens,)
            temperature: float,
            _tile: int,
            softcap: float | None,
            scale: float,
            outputs: tuple[str, ...],
        ) -> tuple[Any, ...]:
            """log-probabilities, entropy, log sum of squares, mean logit, whether it is the top."""
            assert softcap is None
            logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale / temperature
            log_probs = logits.log_softmax(-1)
            more = {
                "entropy": lambda: -(log_probs.exp() * log_probs).sum(-1),
                "log_sum_sq_probs": lambda: (2 * log_probs).logsumexp(-1).detach(),
                "mean_logits": lambda: logits.mean(-1).detach(),
                "is_top1": lambda: logits.argmax(-1) == targets,
            }
            chosen = log_probs.gather(-1, targets[:, None])[:, 0]
            return chosen, *(make() if name in outputs else None for name, make in more.items())

    utils._ChunkedLogProbFunction = PlainHead


def seed_adapter(model: Any, seed: int) -> None:
    """Random LoRA weights that are the same whoever made the adapter: drawn by name, on the CPU."""
    import torch

    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name:
            generator = torch.Generator().manual_seed(seed + sum(name.encode()))
            scale = weight.shape[1] ** -0.5 if "lora_A" in name else 0.02
            drawn = scale * torch.randn(weight.shape, generator=generator)
            with torch.no_grad():
                weight.copy_(drawn.to(weight.dtype))
