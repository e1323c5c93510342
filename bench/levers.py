"""Settings to try one at a time against the shipped configuration; NOTES.md says what to expect."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lever:
    """A change to the project's side of one script."""

    name: str
    task: str
    overrides: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


LEVERS = (
    # GRPO, generation
    Lever("adapter_rollouts", "grpo", ("model.rollout_weights=adapter",)),
    Lever("fast_inference", "grpo", ("model.fast_inference=always",)),
    Lever("generate_in_4_parts", "grpo", ("training.steps_per_generation=4",)),
    Lever("generate_2_steps_at_once", "grpo", ("training.steps_per_generation=32",)),
    # GRPO, training
    Lever("grpo_16_bit", "grpo", ("model.load_in_4bit=false",)),
    Lever("grpo_no_checkpointing", "grpo", ("training.gradient_checkpointing=false",)),
    Lever(
        "grpo_larger_micro_batch",
        "grpo",
        ("training.per_device_train_batch_size=64", "training.gradient_accumulation_steps=4"),
    ),
    Lever("grpo_attention_only", "grpo", ("lora.target_modules=[q_proj, k_proj, v_proj, o_proj]",)),
    Lever("no_prefix_sharing", "grpo", (), {"UNSLOTH_GRPO_PREFIX_GROUPER": "0"}),
    # DPO
    Lever("dpo_16_bit", "dpo", ("model.load_in_4bit=false",)),
    Lever("dpo_no_checkpointing", "dpo", ("training.gradient_checkpointing=false",)),
    Lever("dpo_reference_each_step", "dpo", ("training.precompute_ref_log_probs=false",)),
    Lever(
        "dpo_larger_micro_batch",
        "dpo",
        ("training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=2"),
    ),
    Lever("dpo_any_length", "dpo", ("training.train_sampling_strategy=random",)),
)
