"""What `training.extra` may hold: any argument of the trainer's config class that is not set by the
scripts, works with what they train, and has a value that the trainer takes.

Read from the libraries' source and from the tables below: importing the classes takes torch and
many seconds.
"""

import ast
import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from posttrain.base.errors import ConfigError, did_you_mean, given
from posttrain.settings.help import yaml_type


def _by_name(names: dict[str, str]) -> dict[str, str]:
    """`{what to do: "NAME NAME"}` as `{NAME: what to do}`."""
    return {name: advice for advice, several in names.items() for name in several.split()}


OWNED = _by_name(
    {
        "--output": "output_dir",
        "run.name": "run_name",
        "tracking.report_to": "report_to",
        "run.verbose": "disable_tqdm log_level log_level_replica",
        "--resume": "resume_from_checkpoint ignore_data_skip "
        "restore_callback_states_from_checkpoint",
        "rewards": "reward_weights",
        "prompt.chat_template_kwargs": "chat_template_kwargs",
        "model.max_seq_length": "max_length",
        "training.save_steps and training.save_total_limit": "save_strategy save_only_model "
        "save_on_each_node enable_jit_checkpoint",
        "training.logging_steps": "logging_strategy logging_first_step logging_nan_inf_filter",
        "evaluation.every and data.validation": "do_eval eval_strategy eval_steps eval_delay "
        "eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
        "prediction_loss_only include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval "
        "label_names num_generations_eval",
        "evaluation.batch_size": "per_device_eval_batch_size",
        "./run sft, dpo or grpo, which train": "do_train",
        "./run evaluate": "do_predict",
        "./run export RUN --push REPOSITORY after the training": "push_to_hub hub_model_id "
        "hub_private_repo hub_strategy hub_always_push hub_revision hub_token "
        "log_completions_hub_repo",
        "run.keep": "load_best_model_at_end metric_for_best_model greater_is_better",
        "tracking.samples": "log_completions log_multimodal log_unique_prompts "
        "num_completions_to_print",
        "training.steps_per_generation": "generation_batch_size",
        "training.train_sampling_strategy": "length_column_name",
        "model.fast_inference": "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode "
        "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_group_port vllm_max_model_length vllm_tensor_parallel_size "
        "vllm_structured_outputs_regex",
        "model.gpu_memory_utilization": "vllm_gpu_memory_utilization",
        "the section model, such as model.dtype": "model_init_kwargs",
    }
)
"""Arguments of the trainers that the scripts set themselves, and what to use instead."""

UNSUPPORTED = _by_name(
    {
        "a run uses one GPU": "local_rank ddp_backend ddp_find_unused_parameters "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_timeout deepspeed fsdp "
        "fsdp_config parallelism_config ds3_gather_for_generation",
        "the reference is the policy as loaded, which trl cannot move": "sync_ref_model "
        "ref_model_mixup_alpha ref_model_sync_steps",
        "the code of a model is never run here": "trust_remote_code",
        "Unsloth compiles the layers": "torch_compile torch_compile_backend torch_compile_mode",
        "trl would cast the adapter to 16 bits for it": "use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_transformers_paged",
        "this version of trl ignores it": "padding_free",
        "a step that does not fit is split here, with the same result": "auto_find_batch_size",
        "metrics.jsonl has num_tokens already": "include_num_input_tokens_seen",
        "the loss does not use it (DPO: training.label_smoothing)": "label_smoothing_factor",
        "Unsloth has kernels for the same layers": "use_liger_kernel liger_kernel_config",
        "trl takes the tokenizer's pad token": "pad_token",
        "the scripts give the model no tools": "max_tool_calling_iterations",
        "a row is one prompt and its reply, so that a batch can be divided": "SFTConfig.packing "
        "SFTConfig.packing_strategy SFTConfig.eval_packing SFTConfig.padding_free",
        "the loss is on replies alone": "SFTConfig.completion_only_loss "
        "SFTConfig.assistant_only_loss",
        "rows are rendered here with the model's chat template": "SFTConfig.dataset_text_field "
        "SFTConfig.dataset_kwargs SFTConfig.chat_template_path SFTConfig.eos_token",
        "rows are never cut (data.overlong)": "SFTConfig.truncation_mode",
        "the rewards read the other columns": "GRPOConfig.remove_unused_columns",
        "GRPO draws groups of completions (training.extra.shuffle_dataset: false keeps the order "
        "of the rows)": "GRPOConfig.train_sampling_strategy",
    }
)
"""Arguments that do not work with what the scripts train, and why; the advice is to drop them."""

REMOVED = _by_name(
    {
        "prompts are not cut; see data.overlong": "max_prompt_length",
        "use model.max_seq_length": "max_completion_length max_target_length",
        "use training.loss_type: [sigmoid, sft] with loss_weights: [1.0, ALPHA]": "rpo_alpha",
        "use evaluation.every": "generate_during_eval evaluation_strategy",
        "use model.fast_inference": "vllm_device vllm_dtype vllm_max_model_len vllm_init_kwargs",
        "use training.extra.vllm_importance_sampling_clip_max": "vllm_importance_sampling_cap",
        "use training.warmup_steps with a share below 1": "warmup_ratio",
        "use training.train_sampling_strategy: group_by_length (DPO)": "group_by_length",
        "use --output and --resume never": "logging_dir overwrite_output_dir",
    }
)
"""Arguments of earlier versions of trl and transformers that something here replaces."""

PLATEAU = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the losses of transformers' own evaluation."""
NAMES = {
    "optim": "transformers/training_args.py:OptimizerNames",
    "lr_scheduler_type": "transformers/trainer_utils.py:SchedulerType",
}
CHOICES = {
    "truncation_mode": ("keep_start", "keep_end"),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": tuple(
        f"{level}_{way}" for level in ("token", "sequence") for way in ("truncate", "mask")
    ),
}
"""Values that trl itself checks only in a training step, or never."""
NESTED = {
    "generation_kwargs": {
        "max_new_tokens": "training.max_completion_length",
        **{name: f"training.{name}" for name in ("temperature", "top_p")},
        **{name: f"training.extra.{name}" for name in ("top_k", "min_p", "repetition_penalty")},
    },
    "accelerator_config": {
        "gradient_accumulation_kwargs": "training.gradient_accumulation_steps",
        "split_batches": "training.per_device_train_batch_size",
    },
}
"""Keys of arguments that would override another argument, and that argument."""


TYPES: dict[str, Any] = defaultdict(
    lambda: str, Any=Any, Literal=Literal, bool=bool, int=int, float=float, list=list, dict=dict
)
"""The names in the annotations of the config classes; an enum of theirs is text in YAML."""


def check_extra(training: dict[str, Any], config_class: str) -> None:
    """Check the values of `training` that are the libraries' own: names of optimizers and
    schedules, and `training.extra`. Raises ConfigError for a key or value that is unknown, or that
    a setting is for."""
    valid, name = config_fields(config_class), config_class.split(":")[1]
    for key, source in NAMES.items():
        names = [each for each in enum_values(source) if each not in PLATEAU]
        if training[key] in PLATEAU:
            raise ConfigError(
                f"training.{key}: {training[key]!r} follows an evaluation of transformers, which "
                "is not run here; use another schedule, such as cosine, linear or constant"
            )
        if training[key] not in names:
            raise ConfigError(
                f"training.{key}: there is no {training[key]!r}."
                f"{did_you_mean(training[key], names)}"
            )
    for key, value in training["extra"].items():
        where = f"training.extra.{key}"
        if key in OWNED:
            raise ConfigError(f"{where}: the scripts set it; use {OWNED[key]}")
        if key in training:
            raise ConfigError(f"{where}: write it as training.{key}")
        if reason := UNSUPPORTED.get(f"{name}.{key}") or UNSUPPORTED.get(key):
            raise ConfigError(f"{where}: {reason}; leave it out")
        if key in REMOVED:
            raise ConfigError(f"{where}: trl and transformers no longer take it; {REMOVED[key]}")
        if key not in valid:
            raise ConfigError(
                f"{where}: {name} has no such argument.{did_you_mean(key, valid, 0.8)}"
            )
        kind = eval(valid[key], {}, TYPES)
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
            json.dumps(value, allow_nan=False, default=str)  # as every checkpoint has to
        except ValueError:
            raise ConfigError(f"{where}: expected {yaml_type(kind)}, got {given(value)}") from None
        if key in CHOICES and value not in CHOICES[key]:
            raise ConfigError(
                f"{where}: there is no {value!r}.{did_you_mean(str(value), CHOICES[key])}"
            )
        for inner, instead in NESTED.get(key, {}).items():
            if isinstance(value, dict) and inner in value:
                raise ConfigError(f"{where}.{inner}: write it as {instead}")


def _body(source: str) -> list[ast.stmt]:
    """What a class of an installed library consists of, `package/file.py:Name`."""
    file, name = source.split(":")
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / rest).read_text(encoding="utf-8"))
    classes = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    return classes[name]


def enum_values(source: str) -> list[str]:
    """The values of an Enum, `package/file.py:Name`."""
    return [
        str(item.value.value)
        for item in _body(source)
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def config_fields(config_class: str) -> dict[str, str]:
    """Names and types of the fields of a trl config class and its parents, from their source."""
    parents = (
        "trl/trainer/base_config.py:_BaseConfig",
        "transformers/training_args.py:TrainingArguments",
    )
    return {
        item.target.id: ast.unparse(item.annotation)
        for source in (config_class, *parents)
        for item in _body(source)
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
