"""What `training.extra` may hold: any argument of the trainer's config class that is not set by the
scripts, works with what they train, and has a value that the trainer takes.

Read from the libraries' source and from the tables below, so that no torch is needed.
"""

from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from posttrain.base.errors import ConfigError, did_you_mean
from posttrain.base.expected import given
from posttrain.settings.help import in_words
from posttrain.settings.trainer_fields import config_fields, enum_values


def _each(names: str, text: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), text)


OWNED = {
    "output_dir": "--output",
    "run_name": "run.name",
    "report_to": "tracking.report_to",
    **_each("disable_tqdm log_level log_level_replica", "run.verbose"),
    **_each("resume_from_checkpoint ignore_data_skip", "--resume"),
    "restore_callback_states_from_checkpoint": "--resume",
    "reward_weights": "rewards",
    "chat_template_kwargs": "prompt.chat_template_kwargs",
    "max_length": "model.max_seq_length",
    "save_strategy": "training.save_steps",
    **_each(
        "save_only_model save_on_each_node enable_jit_checkpoint",
        "training.save_steps and training.save_total_limit",
    ),
    **_each("logging_strategy logging_first_step logging_nan_inf_filter", "training.logging_steps"),
    **_each(
        "do_eval eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps "
        "eval_do_concat_batches eval_use_gather_object prediction_loss_only include_for_metrics "
        "batch_eval_metrics bf16_full_eval fp16_full_eval label_names num_generations_eval",
        "evaluation.every and data.validation",
    ),
    "per_device_eval_batch_size": "evaluation.batch_size",
    "do_train": "./run sft, dpo or grpo, which train",
    "do_predict": "./run evaluate",
    **_each(
        "push_to_hub hub_model_id hub_private_repo hub_strategy hub_always_push hub_revision "
        "hub_token log_completions_hub_repo",
        "./run export RUN --push REPOSITORY after the training",
    ),
    **_each("load_best_model_at_end metric_for_best_model greater_is_better", "run.keep"),
    **_each(
        "log_completions log_multimodal log_unique_prompts num_completions_to_print",
        "tracking.samples",
    ),
    "generation_batch_size": "training.steps_per_generation",
    "length_column_name": "training.train_sampling_strategy",
    **_each("local_rank ddp_backend", "accelerate launch (docs/elsewhere.md)"),
    **_each(
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url "
        "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
        "vllm_max_model_length vllm_tensor_parallel_size vllm_structured_outputs_regex",
        "model.fast_inference",
    ),
    "vllm_gpu_memory_utilization": "model.gpu_memory_utilization",
    **_each("model_init_kwargs", "the section model, such as model.dtype"),
}
"""Arguments of the trainers that the scripts set themselves, and what to use instead."""

UNSUPPORTED = {
    **_each(
        "deepspeed fsdp fsdp_config parallelism_config ds3_gather_for_generation",
        "a model is not split over devices here; leave it out. Several GPUs train with accelerate "
        "launch (docs/elsewhere.md)",
    ),
    **_each(
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        "the reference is the policy as loaded, which trl cannot move; leave it out",
    ),
    "trust_remote_code": "the code of a model is never run here; leave it out",
    **_each(
        "torch_compile torch_compile_backend torch_compile_mode",
        "Unsloth compiles the layers; leave it out",
    ),
    **_each(
        "use_transformers_continuous_batching transformers_continuous_batching_config",
        "trl would cast the adapter to 16 bits for it; leave it out (model.fast_inference samples "
        "with vLLM)",
    ),
    "padding_free": "this version of trl ignores it; leave it out",
    "auto_find_batch_size": "a step that does not fit the memory is split here, with the same "
    "result; leave it out",
    "include_num_input_tokens_seen": "the trainer counts tokens already, as num_tokens in "
    "metrics.jsonl; leave it out",
    "label_smoothing_factor": "the trainer's loss does not use it; leave it out (for DPO see "
    "training.label_smoothing)",
    **_each(
        "use_liger_kernel liger_kernel_config",
        "Unsloth has kernels for the same layers; leave it out",
    ),
    "pad_token": "trl takes the tokenizer's pad token; leave it out, or set it in the model folder",
    "max_tool_calling_iterations": "the scripts give the model no tools; leave it out",
    **_each(
        "SFTConfig.packing SFTConfig.packing_strategy SFTConfig.eval_packing "
        "SFTConfig.padding_free",
        "a row is one prompt and its reply here, so that a batch can be divided; leave it out",
    ),
    **_each(
        "SFTConfig.completion_only_loss SFTConfig.assistant_only_loss",
        "the loss is on replies alone; leave it out",
    ),
    **_each(
        "SFTConfig.dataset_text_field SFTConfig.dataset_kwargs SFTConfig.chat_template_path "
        "SFTConfig.eos_token",
        "rows are rendered here with the model's chat template; leave it out",
    ),
    "SFTConfig.label_smoothing_factor": "it needs all logits of a second pass; leave it out",
    "SFTConfig.truncation_mode": "rows are never cut; leave it out (data.overlong)",
    "GRPOConfig.remove_unused_columns": "the rewards read the other columns; leave it out",
    "GRPOConfig.train_sampling_strategy": "GRPO draws groups of completions; leave it out "
    "(training.extra.shuffle_dataset: false keeps the order of the rows)",
}
"""Arguments that do not work with what the scripts train, and what to do."""

NO_LONGER = "trl and transformers no longer take it; "
REMOVED = {
    "max_prompt_length": "prompts are no longer cut; rows longer than model.max_seq_length are "
    "left out or refused (data.overlong)",
    **_each("max_completion_length max_target_length", "use model.max_seq_length"),
    **_each("is_encoder_decoder label_pad_token_id padding_value", "leave it out"),
    **_each(
        "use_logits_to_keep use_num_logits_to_keep tools ref_model_init_kwargs", "leave it out"
    ),
    **_each("model_adapter_name ref_adapter_name force_use_ref_model", "leave it out"),
    "base_model_attribute_name": "leave it out",
    "reference_free": "leave it out; no loss of trl goes without a reference",
    "rpo_alpha": "use training.loss_type: [sigmoid, sft] with training.loss_weights: [1.0, ALPHA]",
    **_each("use_liger_loss use_liger_kernel_loss", "leave it out; the loss is already chunked"),
    "generate_during_eval": "use evaluation.every",
    **_each(
        "vllm_device vllm_dtype vllm_max_model_len vllm_init_kwargs", "use model.fast_inference"
    ),
    **_each("vllm_enable_prefix_caching vllm_guided_decoding_regex", "leave it out"),
    "use_transformers_paged": "leave it out",
    "vllm_importance_sampling_cap": "use training.extra.vllm_importance_sampling_clip_max",
    "wandb_log_unique_prompts": "use tracking.samples",
    "evaluation_strategy": "use evaluation.every and data.validation",
    "warmup_ratio": "use training.warmup_steps with a share below 1",
    "group_by_length": "use training.train_sampling_strategy: group_by_length (DPO)",
    "adafactor": "use training.optim: adafactor",
    **_each("no_cuda use_mps_device", "use training.extra.use_cpu to train without a GPU"),
    **_each("per_gpu_train_batch_size", "use training.per_device_train_batch_size"),
    **_each("per_gpu_eval_batch_size", "use evaluation.batch_size"),
    **_each("half_precision_backend fp16_backend fp16_opt_level", "use training.fp16 or bf16"),
    **_each("push_to_hub_token push_to_hub_model_id push_to_hub_organization", "use ./run export"),
    **_each("logging_dir overwrite_output_dir", "use --output and --resume never"),
    **_each("save_safetensors past_index use_legacy_prediction_loop torchdynamo", "leave it out"),
    **_each("jit_mode_eval use_ipex xpu_backend tpu_num_cores mp_parameters", "leave it out"),
    **_each("ray_scope include_inputs_for_metrics include_tokens_per_second", "leave it out"),
    **_each("sharded_ddp fsdp_min_num_params tpu_metrics_debug", "leave it out"),
    **_each(
        "dispatch_batches split_batches", "use training.extra.accelerator_config: {NAME: VALUE}"
    ),
}
"""Arguments that earlier versions of trl and transformers had, and what to do now."""

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
# The losses of DPO that take another divergence, as trl's DPOTrainer lists them.
DIFFERENCE_LOSSES = (
    *("discopop", "exo_pair", "hinge", "ipo", "robust", "sft"),
    *("sigmoid", "sigmoid_norm"),
)
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


class _Types(dict[str, Any]):
    """The names in the annotations of the config classes; an enum of theirs is text in YAML."""

    def __missing__(self, name: str) -> Any:
        return str


TYPES = _Types(
    Any=Any, Literal=Literal, bool=bool, int=int, float=float, str=str, list=list, dict=dict
)


def check_extra(training: dict[str, Any], config_class: str) -> None:
    """Check the values of `training` that are the libraries' own: names of optimizers and
    schedules, and `training.extra`.

    Raises:
        ConfigError: an unknown key or value, or one that has a setting of its own.
    """
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
        _check_argument(key, value, training, valid, name)
    _check_together(training)


def _check_argument(
    key: str, value: Any, training: dict[str, Any], valid: dict[str, str], name: str
) -> None:
    where = f"training.extra.{key}"
    if key in OWNED:
        raise ConfigError(f"{where}: the scripts set it; use {OWNED[key]}")
    if key in training:
        raise ConfigError(f"{where}: write it as training.{key}")
    for special in (f"{name}.{key}", key):
        if special in UNSUPPORTED:
            raise ConfigError(f"{where}: {UNSUPPORTED[special]}")
        if special in REMOVED:
            raise ConfigError(f"{where}: {NO_LONGER}{REMOVED[special]}")
    if key not in valid:
        raise ConfigError(f"{where}: {name} has no such argument.{did_you_mean(key, valid, 0.8)}")
    kind = eval(valid[key], {}, TYPES)
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        raise ConfigError(f"{where}: expected {in_words(kind)}, got {given(value)}") from None
    if key in CHOICES and value not in CHOICES[key]:
        raise ConfigError(
            f"{where}: there is no {value!r}.{did_you_mean(str(value), CHOICES[key])}"
        )
    for inner, instead in NESTED.get(key, {}).items():
        if isinstance(value, dict) and inner in value:
            raise ConfigError(f"{where}.{inner}: write it as {instead}")


def _check_together(training: dict[str, Any]) -> None:
    """Check what trl refuses of several values, and only once the model is loaded."""
    extra, losses = training["extra"], training["loss_type"]
    divergence = extra.get("f_divergence_type", "reverse_kl")
    if divergence != "reverse_kl" and not set(losses) <= set(DIFFERENCE_LOSSES):
        other = ", ".join(loss for loss in losses if loss not in DIFFERENCE_LOSSES)
        raise ConfigError(
            f"training.extra.f_divergence_type: {other} takes none but reverse_kl; leave it out, "
            f"or use losses of {', '.join(DIFFERENCE_LOSSES)}"
        )
    if extra.get("use_weighting") and {"aot", "aot_unpaired", "sft"} & set(losses):
        raise ConfigError(
            "training.extra.use_weighting: trl cannot weight the pairs of aot, aot_unpaired and "
            "sft; leave it out, or use another training.loss_type"
        )
