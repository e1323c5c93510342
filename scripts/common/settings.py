"""Every setting of a run, typed and documented: one class a section of the YAML.

`training` uses the names of trl's and transformers' own configuration classes, so that their
documentation applies; whatever is not spelled out here goes through `training.extra`, which is
checked against the real class.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section: unknown keys and wrong types are refused, nothing is coerced but int to float."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Model(Section):
    name: str
    """Hub name or folder of the model to train."""
    revision: str | None = None
    """Hub revision; ignored by Unsloth when it swaps in a pre-quantised repository."""
    max_seq_length: int = Field(2048, ge=16)
    """Longest prompt plus reply, in tokens. A longer row is refused or dropped, never cut."""
    load_in_4bit: bool = True
    """QLoRA: base weights in 4-bit NF4. false keeps them in `dtype`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type of the base weights. auto: the best that the device has."""
    min_gpu_memory_gb: float = Field(0.0, ge=0)
    """GPU memory this config needs; a smaller GPU is refused before anything is loaded."""
    smaller_config: str | None = None
    """The config to name when this one does not fit the GPU."""


class Lora(Section):
    r: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 is what Unsloth's fast path is written for."""
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    """The linear layers that get an adapter."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (https://arxiv.org/abs/2312.03732)."""


class Source(Section):
    """Where rows come from."""

    path: str
    """A local .json, .jsonl, .csv, .tsv (MGSM's) or .parquet file, a dataset folder, a name on the
    hub, or one file there as hf://datasets/OWNER/NAME/FILE."""
    subset: str | None = None
    """The hub's configuration name, such as `main` for openai/gsm8k."""
    split: str = "train"
    """The split to take from a hub dataset or a dataset folder."""
    revision: str | None = None
    """The hub revision."""
    limit: int | None = Field(None, ge=1)
    """Use only the first rows."""


class Data(Section):
    train: Source
    """Rows to train on."""
    overlong: Literal["error", "drop"] = "error"
    """What to do with a row that does not fit the length limit: refuse the run, or drop and count
    the row. Rows are never cut."""


class PairColumns(Section):
    """Names of columns. Those that a format of `data.format` gives another name are in brackets."""

    prompt: str = "prompt"
    """Column of the user's turn, or of the messages up to it [orca: question]."""
    chosen: str = "chosen"
    """Column of the preferred reply."""
    rejected: str = "rejected"
    """Column of the other reply."""
    system: str | None = None
    """Column of a system turn; where it is empty or not named, `prompt.system` is used [orca:
    system, used only where `prompt.system` is null]."""
    language: str = "lang"
    """Column of the row's language, read where `data.language` is given."""
    first: str = "conversation_a"
    """Column of an arena's first conversation."""
    second: str = "conversation_b"
    """Column of an arena's second conversation."""
    choice: str = "choice"
    """Column of an arena's vote: a side, a tie, or the name of one of the two models."""
    turn: str | None = None
    """Column of the reply that an arena's vote is about, counted from 0; null: the last one."""


FORMAT_COLUMNS = {"orca": {"prompt": "question", "system": "system"}}


class PairData(Data):
    format: Literal["columns", "orca", "messages", "conversational", "oasst", "comparia"] = (
        "columns"
    )
    """How a row holds its pair. columns: three columns of text; orca: the same with a system turn;
    messages: whole conversations that share all but the last turn (UltraFeedback); conversational:
    prompt, chosen and rejected as messages; oasst: text with the earlier turns in the prompt;
    comparia: two conversations and a vote."""
    columns: PairColumns = PairColumns()
    """Which columns of the dataset hold what."""
    language: str | None = None
    """Leave out, and count, rows that `columns.language` gives another language, such as fr."""
    unusable: Literal["error", "drop"] = "error"
    """What to do with a pair whose replies are equal or one of which is empty: refuse the run, or
    leave out and count the row."""
    eval: Source | None = None
    """Held-out pairs of their own; without it `holdout` prompts are split off."""
    holdout: int = Field(200, ge=1)
    """Pairs to hold out of training, chosen by a hash of their prompt."""
    check_against: list[Source] = []
    """Evaluation questions (column `question`, as in GSM8K and MGSM) to look for in the prompts."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_the_format(cls, values: Any) -> Any:
        """The format's own column names, where the config gives none: they are in its record."""
        given = values.get("columns", {}) if isinstance(values, dict) else None
        if not isinstance(given, dict) or not isinstance(values.get("format"), str):
            return values
        return {**values, "columns": {**FORMAT_COLUMNS.get(values["format"], {}), **given}}


class ProblemColumns(Section):
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the solution: a number, or text that ends in `#### number` as in GSM8K."""


class ProblemData(Data):
    columns: ProblemColumns = ProblemColumns()
    """Which columns of the dataset hold what."""
    eval: Source
    """Problems to score before and after; a question that is also trained on is refused."""


class Prompt(Section):
    system: str | None = None
    """The system turn. null sends none, and then the chat template may add its own."""


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
    """Optimizer steps between two lines of metrics.jsonl."""
    save_steps: int = Field(50, ge=1)
    """Optimizer steps between two checkpoints."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints kept."""
    seed: int = Field(42, ge=0)
    """Seed of everything random in the run."""
    extra: dict[str, Any] = {}
    """Any other argument of the trainer's configuration class."""

    def safe_to_save(self, step: int) -> bool:
        """Whether a checkpoint after `step` holds all that the next step depends on."""
        return True

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true; keep one")
        return self


class DPOTraining(Training):
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference (equation 7 of arxiv.org/abs/2305.18290)."""
    loss_type: list[
        Literal[
            "sigmoid",
            "hinge",
            "ipo",
            "exo_pair",
            "nca_pair",
            "robust",
            "bco_pair",
            "sppo_hard",
            "aot",
            "aot_unpaired",
            "apo_zero",
            "apo_down",
            "discopop",
            "sft",
            "sigmoid_norm",
        ]
    ] = Field(["sigmoid"], min_length=1)
    """Losses to combine; sigmoid is DPO's own."""
    loss_weights: list[float] | None = None
    """One weight a loss; null weighs each 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels assumed to be flipped."""
    precompute_ref_log_probs: bool = False
    """Score the reference once before training instead of at every step."""

    @model_validator(mode="after")
    def _one_weight_a_loss(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} entries for "
                f"{len(self.loss_type)} losses in loss_type"
            )
        return self


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
    """Micro-batches generated at once; null is gradient_accumulation_steps."""
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
    def _whole_groups(self) -> Self:
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        rollouts = self.per_device_train_batch_size * micro_batches
        if rollouts % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size x (steps_per_generation or "
                f"gradient_accumulation_steps) = {rollouts} is not a multiple of "
                f"num_generations = {self.num_generations}; groups would be torn apart"
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


class Evaluation(Section):
    limit: int | None = Field(None, ge=1)
    """Score only the first rows of the held-out data."""
    batch_size: int | None = Field(None, ge=1)
    """Rows scored at once; null finds a size from the memory there is."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest reply when generating for a score."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy; above it replies are sampled, from `training.seed`."""
    stop_at_answer: bool = False
    """End a reply at its closing answer tag. Faster, but it hides what the model would have written
    after the tag, which the rewards see; so the scores are no longer those of the training."""


class PairEvaluation(Evaluation):
    replies: int = Field(100, ge=0)
    """Held-out prompts to answer before and after, to see which language the replies are in."""


class Tracking(Section):
    report_to: list[str] = []
    """Integrations of the trainer, such as wandb; metrics.jsonl is always written."""
    samples: int = Field(4, ge=0)
    """Completions to keep in samples.jsonl at every generation."""


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is outputs/NAME unless --output says otherwise."""
    verbose: bool = False
    """Show everything that the libraries print."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop training with a checkpoint after this long; the same command then goes on."""
    threads: int | None = Field(None, ge=1)
    """CPU threads for torch; null leaves torch's own choice."""


class DPOSettings(Section):
    """Settings of scripts/dpo.py."""

    model: Model
    lora: Lora = Lora()
    data: PairData
    prompt: Prompt = Prompt()
    training: DPOTraining
    evaluation: PairEvaluation = PairEvaluation()
    tracking: Tracking = Tracking()
    run: Run


class GRPOSettings(Section):
    """Settings of scripts/grpo.py."""

    model: Model
    lora: Lora = Lora()
    data: ProblemData
    prompt: Prompt = Prompt()
    rewards: dict[str, float] = Field({"format": 1.0, "correctness": 1.0}, min_length=1)
    """Reward functions and their weights: a name of rewards/, `file.py:function` or
    `package.module:function`."""
    training: GRPOTraining
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    run: Run

    @model_validator(mode="after")
    def _room_for_a_completion(self) -> Self:
        longest, limit = self.training.max_completion_length, self.model.max_seq_length
        if longest >= limit:
            raise ValueError(
                f"training.max_completion_length = {longest} leaves no room for a prompt in "
                f"model.max_seq_length = {limit}"
            )
        return self
