"""Every argument of trl's config classes either trains or is refused before anything is loaded.

Each field gets a value other than its default, through its own setting or `training.extra`; then
the command runs as a dry run and, where that finds nothing wrong, trains two steps of the demo
model. Each method runs in one interpreter: this file, run as `python -m`, prints JSON lines.
"""

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import PostTrainError
from posttrain.settings.extra import config_fields
from posttrain.settings.training import DPOTraining, GRPOTraining, SFTTraining
from tests.helpers import ROOT

METHODS: dict[str, tuple[str, Any]] = {
    "dpo": ("trl/trainer/dpo_config.py:DPOConfig", DPOTraining),
    "grpo": ("trl/trainer/grpo_config.py:GRPOConfig", GRPOTraining),
    "sft": ("trl/trainer/sft_config.py:SFTConfig", SFTTraining),
}
# A plausible value of each field that is not its default; a flag that is missing is turned over.
VALUES: dict[str, Any] = {
    # transformers.TrainingArguments
    "output_dir": "elsewhere",
    "per_device_train_batch_size": 24,
    "num_train_epochs": 0.5,
    "max_steps": 1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "polynomial",
    "lr_scheduler_kwargs": {"power": 2.0},
    "warmup_steps": 1,
    "optim": "adamw_torch",
    "optim_args": "fused=True",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "optim_target_modules": "all-linear",
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "liger_kernel_config": {"rope": False},
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 1,
    "logging_strategy": "epoch",
    "logging_steps": 2,
    "include_num_input_tokens_seen": "all",
    "log_level": "warning",
    "log_level_replica": "error",
    "report_to": "tensorboard",
    "run_name": "other",
    "project": "mine",
    "trackio_space_id": "me/space",
    "trackio_bucket_id": "me/bucket",
    "trackio_static_space_id": "me/static",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_delay": 1,
    "per_device_eval_batch_size": 4,
    "eval_accumulation_steps": 1,
    "include_for_metrics": ["loss"],
    "save_strategy": "epoch",
    "save_steps": 1,
    "save_total_limit": 1,
    "hub_token": "hf_" + "x" * 8,
    "hub_private_repo": True,
    "hub_model_id": "me/model",
    "hub_strategy": "end",
    "hub_revision": "main",
    "metric_for_best_model": "loss",
    "greater_is_better": False,
    "seed": 7,
    "data_seed": 7,
    "accelerator_config": {"dispatch_batches": False},
    "parallelism_config": {"tp_size": 1},
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "spawn",
    "remove_unused_columns": {"dpo": False, "grpo": True, "sft": False},
    "label_names": ["labels"],
    "train_sampling_strategy": "sequential",
    "length_column_name": "tokens",
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 25,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": False,
    "ddp_backend": "gloo",
    "ddp_timeout": 60,
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "deepspeed": "ds.json",
    "debug": "underflow_overflow",
    "resume_from_checkpoint": "elsewhere",
    "local_rank": 0,
    "tf32": False,
    # trl.DPOConfig
    "model_init_kwargs": {"dtype": "float32"},
    "router_aux_loss_coef": 0.1,
    "dataset_num_proc": 1,
    "max_length": 128,
    "truncation_mode": "keep_end",
    "pad_to_multiple_of": 8,
    "precompute_ref_batch_size": 4,
    "loss_type": {"dpo": ["ipo"], "grpo": "grpo", "sft": "dft"},
    "loss_weights": [1.0, 0.5],
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.3,
    "label_smoothing": 0.1,
    "beta": 0.05,
    "discopop_tau": 0.1,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 1,
    "pad_token": "<|endoftext|>",
    # trl.GRPOConfig
    "num_generations": 4,
    "num_generations_eval": 2,
    "max_completion_length": 12,
    "generation_batch_size": 32,
    "steps_per_generation": 1,
    "temperature": 0.9,
    "top_p": 0.9,
    "top_k": 10,
    "min_p": 0.05,
    "generation_kwargs": {"suppress_tokens": [5]},
    "chat_template_kwargs": {"enable_thinking": False},
    "repetition_penalty": 1.1,
    "cache_implementation": "static",
    "vllm_mode": "server",
    "vllm_model_impl": "transformers",
    "vllm_structured_outputs_regex": "a+",
    "vllm_server_base_url": "http://127.0.0.1:9",
    "vllm_server_host": "127.0.0.1",
    "vllm_server_port": 9,
    "vllm_server_timeout": 1.0,
    "vllm_group_port": 9,
    "vllm_gpu_memory_utilization": 0.2,
    "vllm_max_model_length": 256,
    "vllm_tensor_parallel_size": 2,
    "num_iterations": 2,
    "epsilon": 0.1,
    "delta": 2.0,
    "epsilon_high": 0.3,
    "sapo_temperature_neg": 1.0,
    "sapo_temperature_pos": 1.1,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 2.0,
    "vespo_k_neg": 2.0,
    "vespo_lambda_neg": 1.0,
    "importance_sampling_level": "sequence",
    "reward_weights": [1.0],
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01,
    "entropy_coef_min": 0.001,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.01,
    "entropy_target": 1.0,
    "max_tool_calling_iterations": 2,
    "vllm_importance_sampling_mode": "token_mask",
    "vllm_importance_sampling_clip_max": 2.0,
    "vllm_importance_sampling_clip_min": 0.1,
    "off_policy_mask_threshold": 0.5,
    "num_completions_to_print": 1,
    "log_completions_hub_repo": "me/completions",
    "transformers_continuous_batching_config": {"max_memory_percent": 0.3},
    "vllm_importance_sampling_cap": 2.0,
}


# --- in an interpreter of its own ---------------------------------------------------------------


def overrides(method: str, default: dict[str, Any]) -> dict[str, str]:
    """Each field of the config class and the override that gives it another value."""
    config_class, settings = METHODS[method]
    made = {}
    for name in config_fields(config_class):
        value = VALUES[name] if name in VALUES else not default[name]
        if isinstance(value, dict) and method in value:
            value = value[method]
        assert value != default[name] or name in settings.model_fields, name
        where = "training" if name in settings.model_fields else "training.extra"
        made[name] = f"{where}.{name}={json.dumps(value)}"
    return made


def outcome(method: str, argv: list[str]) -> tuple[str, str]:
    """`fine`, `refused` or `traceback` of a command in this process, and its message."""
    from tests.reliability.inside import MAIN

    try:
        code = MAIN[method](argv)
    except PostTrainError as error:
        return ("refused" if error.exit_code == 2 else "traceback"), str(error)
    except SystemExit as error:  # argparse
        return "traceback", f"exit {error.code}"
    except Exception:  # whatever it is, a user would see this traceback: it is what is counted
        return "traceback", traceback.format_exc()
    return ("fine", "") if code == 0 else ("traceback", f"exit code {code}")


def sweep(method: str, folder: Path) -> None:
    """A JSON line for each field: how its dry run ended or, where that was fine, its training."""
    from posttrain.model import runtime
    from tests.reliability.inside import arguments

    runtime.start(verbose=False, threads=1)
    import trl

    fields = dataclasses.fields(getattr(trl, f"{method.upper()}Config"))
    default = {
        f.name: f.default_factory() if f.default is dataclasses.MISSING else f.default
        for f in fields
    }
    for name, override in overrides(method, default).items():
        argv = arguments(
            method,
            folder / f"{method}-{name}",
            *("training.max_steps=2", "run.score=false", "tracking.report_to=[]"),
            *(["data.train.limit=56", "data.holdout=8"] if method == "dpo" else []),
            override,
        )
        ended, message = outcome(method, [*argv, "--dry-run"])
        if ended == "fine":
            ended, message = outcome(method, argv)
            ended = {"fine": "trained", "refused": "refused late"}.get(ended, ended)
        row = {"name": name, "ended": ended, "message": message}
        print("ROW " + json.dumps(row), file=sys.__stderr__, flush=True)


# --- what came out ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_every_argument_trains_or_is_refused_before_anything_is_loaded(
    method: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.e2e.test_every_argument", method, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=3600,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    rows = [json.loads(line[4:]) for line in lines if line.startswith("ROW ")]
    assert {row["name"] for row in rows} == config_fields(METHODS[method][0]).keys()
    assert [row for row in rows if row["ended"] not in ("trained", "refused")] == []
    assert [row for row in rows if "\n" in row["message"]] == []
    assert sum(row["ended"] == "trained" for row in rows) >= 50


if __name__ == "__main__":
    sweep(sys.argv[1], Path(sys.argv[2]))
