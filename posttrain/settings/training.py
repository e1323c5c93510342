"""Settings of `training`, under the names of trl's and transformers' configuration classes."""

from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from posttrain.settings.section import Section


class Training(Section):
    """The arguments of trl's trainers, under their own names."""

    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps; -1 trains for num_train_epochs, 0 only evaluates."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the data when max_steps is -1."""
    per_device_train_batch_size: int = Field(2, ge=1)
    """Rows a device holds at once. For GRPO a row is one completion."""
    gradient_accumulation_steps: int = Field(8, ge=1)
    """Batches added up before an optimizer step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    lr_scheduler_type: str = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_steps: float = Field(0.1, ge=0)
    """Steps of warm-up; below 1 a share of all steps."""
    optim: str = "adamw_8bit"
    """Optimizer, one of transformers' names."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm."""
    bf16: bool = False
    """Mixed precision in bfloat16 (Ampere and later)."""
    fp16: bool = False
    """Mixed precision in float16 with a loss scaler (T4, V100)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass; on a GPU with Unsloth's offloading version."""
    logging_steps: int = Field(1, ge=1)
    """Optimizer steps between two lines of metrics.jsonl; the step of a checkpoint has one too."""
    save_steps: int = Field(50, ge=1)
    """Optimizer steps between two checkpoints."""
    save_total_limit: int = Field(2, ge=1)
    """Newest checkpoints kept; the best one by validation, or without any by training reward,
    accuracy or loss, is kept in addition."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of everything random in the run."""
    extra: dict[str, Any] = Field({})
    """Any other argument of the trainer's configuration class."""

    def safe_to_save(self, step: int) -> bool:
        """Whether a checkpoint after `step` holds all that the next step depends on."""
        return True

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true; keep one")
        return self


# The losses that take extra.f_divergence_type, as trl's DPOTrainer lists them, and the others.
AnyDivergence = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft", "sigmoid_norm"
]
ReverseKL = Literal[
    "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"
]


class DPOTraining(Training):
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference (equation 7 of arxiv.org/abs/2305.18290)."""
    loss_type: list[Literal[AnyDivergence, ReverseKL]] = Field(["sigmoid"], min_length=1)
    """Losses to combine; sigmoid is DPO's own."""
    loss_weights: list[float] | None = None
    """One weight a loss; null weighs each 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs whose preference is assumed to be flipped. Used by robust, exo_pair, aot and
    aot_unpaired; trl's other losses ignore it, so it is refused with them."""
    ld_alpha: float | None = Field(None, ge=0, le=1)
    """Weight of the tokens by which a reply is longer than the other, against a bias to length
    (LD-DPO, https://arxiv.org/abs/2409.06411); null and 1 weigh all tokens alike."""
    precompute_ref_log_probs: bool = False
    """Score the reference once before training, not at every step, and keep the result for later
    runs on the same rows and model, in $POSTTRAIN_CACHE or ~/.cache/posttrain."""
    train_sampling_strategy: Literal["random", "group_by_length", "sequential"] = "random"
    """Order of the rows. group_by_length puts pairs of like length together: less padding."""

    @model_validator(mode="after")
    def _losses_with_what_they_take(self) -> Self:
        smoothed = {"robust", "exo_pair", "aot", "aot_unpaired"}  # the losses that read it
        if self.label_smoothing and not smoothed & {*self.loss_type}:
            raise ValueError(
                f"label_smoothing = {self.label_smoothing:g} changes nothing with loss_type "
                f"{', '.join(self.loss_type)}; set it to 0, or use robust, which is sigmoid with it"
            )
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0, such as 0.001")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} entries for "
                f"{len(self.loss_type)} losses in loss_type"
            )
        divergence = self.extra.get("f_divergence_type", "reverse_kl")
        others = [loss for loss in self.loss_type if loss in get_args(ReverseKL)]
        if divergence != "reverse_kl" and others:
            raise ValueError(
                f"extra.f_divergence_type: {', '.join(others)} takes none but reverse_kl; leave it "
                f"out, or use losses of {', '.join(get_args(AnyDivergence))}"
            )
        if self.extra.get("use_weighting") and {"aot", "aot_unpaired", "sft"} & {*self.loss_type}:
            raise ValueError(
                "extra.use_weighting: trl cannot weight the pairs of aot, aot_unpaired and sft; "
                "leave it out, or use another training.loss_type"
            )
        return self


class SFTTraining(Training):
    loss_type: Literal["nll", "dft"] = "nll"
    """nll: cross-entropy of the reply's tokens; dft: weighted by their probability
    (https://arxiv.org/abs/2508.05629)."""
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    """Order of the rows."""


class GRPOTraining(Training):
    num_generations: int = Field(8, ge=2)
    """Completions sampled for each prompt: the group G of arxiv.org/abs/2402.03300."""
    max_completion_length: int = Field(512, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the rollouts."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling of the rollouts; 1 is off and keeps them on-policy."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL term against the reference; 0 leaves it out."""
    num_iterations: int = Field(1, ge=1)
    """Optimizer passes over each set of rollouts."""
    steps_per_generation: int | None = Field(None, ge=1)
    """Micro-batches generated at once; null is gradient_accumulation_steps. Fewer than those sample
    the rollouts of a step in parts, for less memory."""
    epsilon: float = Field(0.2, gt=0)
    """Clip range of the probability ratio."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = (
        "dapo"
    )
    """How token losses are averaged; see trl's GRPOConfig."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by."""
    mask_truncated_completions: bool = False
    """Leave completions that hit the limit out of the loss."""

    @model_validator(mode="after")
    def _ratios_and_full_groups(self) -> Self:
        level = self.extra.get("importance_sampling_level", "token")
        if self.loss_type == "luspo" and level != "sequence":
            raise ValueError(
                "loss_type luspo scales the loss of a sequence, so it needs the importance "
                "ratios of sequences; set training.extra.importance_sampling_level to sequence"
            )
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        rollouts = self.per_device_train_batch_size * micro_batches
        if rollouts % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size x (steps_per_generation or "
                f"gradient_accumulation_steps) = {rollouts} is not a multiple of "
                f"num_generations = {self.num_generations}; groups would be torn apart"
            )
        steps = self.gradient_accumulation_steps
        if micro_batches % steps and steps % micro_batches:
            raise ValueError(
                f"steps_per_generation = {micro_batches} neither divides "
                f"gradient_accumulation_steps = {steps} nor is a multiple of it: a generation "
                "could end in the middle of a step, where no checkpoint can be taken"
            )
        if not self.safe_to_save(self.save_steps):
            raise ValueError(
                "save_steps x gradient_accumulation_steps must be a multiple of "
                f"{micro_batches * self.num_iterations} (steps_per_generation x num_iterations): a "
                "checkpoint taken between two generations would lose the rollouts still waiting"
            )
        return self

    def safe_to_save(self, step: int) -> bool:
        """True between two generations: trl keeps the rollouts still waiting in no checkpoint."""
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        done = step * self.gradient_accumulation_steps
        return done % (micro_batches * self.num_iterations) == 0
