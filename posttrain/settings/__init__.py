"""Every setting of a run, typed and documented: one class a section of the YAML.

`training` uses the names of trl's and transformers' own configuration classes, so that their
documentation applies; whatever is not spelled out here goes through `training.extra`, which is
checked against the real class.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.settings.data import (
    Data,
    PairColumns,
    PairData,
    ProblemColumns,
    ProblemData,
    ProblemSet,
    ReplyData,
    Source,
)
from posttrain.settings.export import Export
from posttrain.settings.health import Health, PairHealth, ProblemHealth
from posttrain.settings.model import Lora, Model, Prompt, RolloutModel
from posttrain.settings.section import Section
from posttrain.settings.training import DPOTraining, GRPOTraining, SFTTraining, Training

__all__ = [
    "DPOSettings",
    "Evaluation",
    "Export",
    "GRPOSettings",
    "GRPOTraining",
    "Lora",
    "Model",
    "PairColumns",
    "PairData",
    "ProblemColumns",
    "ProblemData",
    "ProblemSet",
    "Prompt",
    "ReplyData",
    "RolloutModel",
    "SFTSettings",
    "Source",
    "Training",
    "TrainingSettings",
]


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
    """End a reply at its closing answer tag. Faster, but it hides what follows the tag, which the
    rewards of the training see."""
    every: int | None = Field(None, ge=1)
    """Steps between two validations on the rows of `data.validation`; null: before the first and
    after the last step only."""

    @property
    def sampling(self) -> dict[str, float]:
        """How a token is drawn, by names that transformers and servers share; empty if greedily."""
        return {"temperature": self.temperature, "top_p": 1.0} if self.temperature else {}

    @property
    def decoding(self) -> dict[str, bool | int | float]:
        """What a reply depends on beside model, prompt and seed, as in request.json."""
        return {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "stop_at_answer": self.stop_at_answer,
        }

    def from_the_policy(self) -> Self:
        """The same with replies drawn from the policy's own distribution."""
        return self.model_copy(update={"temperature": 1.0, "stop_at_answer": False})


class PairEvaluation(Evaluation):
    replies: int = Field(100, ge=0)
    """Held-out prompts to answer before and after, to see what the replies are like: language,
    length, how they end, repetition, and at temperature 1 the KL to the reference. Where they have
    a system turn, they are answered again without it, for the share in the right language."""
    also: list[ProblemSet] = Field([])
    """Problem sets to score before and after, as a check that nothing was lost: `{path, name,
    limit, language, max_new_tokens, columns, subset, split, revision}` each. A set with a question
    that is trained on is refused."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [problems.name for problems in self.also]
        if len(set(names)) < len(names):
            raise ValueError(f"also: two sets have the same name: {', '.join(names)}")
        return self


class Tracking(Section):
    report_to: list[Literal["wandb", "tensorboard", "trackio"]] = Field([])
    """Where metrics go beside metrics.jsonl. wandb is also on when its key is there (WANDB_API_KEY
    or ~/.netrc) or WANDB_MODE=offline; WANDB_MODE=disabled keeps it off."""
    samples: int = Field(4, ge=0)
    """Completions to keep in samples.jsonl at every generation."""


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is outputs/NAME, or that of --output."""
    verbose: bool = False
    """Show everything that the libraries print."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop training with a checkpoint after this long; the same command then resumes."""
    keep: Literal["best", "last"] | None = None
    """The adapter that is saved, scored and exported: the best by validation, or that of the last
    step; null: best where there is validation. Equally good is the later one."""
    patience: int | None = Field(None, ge=1)
    """End training after so many validations in a row without an improvement."""
    threads: int | None = Field(None, ge=1)
    """CPU threads for torch; null: OMP_NUM_THREADS, else the cores that the process may use. A
    resumed run keeps its number, on which sums of floats depend."""
    score: bool = True
    """Score the held-out data before and after. false: only train, validate and save the adapter;
    true later scores it, without training again."""
    price_per_hour: float | None = Field(None, ge=0)
    """What the machine costs an hour, in any currency; the report then says what training cost."""


class _Trained(Section):
    """What every method has: a model, an adapter of a kind that fits it, data and a run."""

    model: Model
    lora: Lora = Lora()
    method: str
    data: Data
    prompt: Prompt = Prompt()
    training: Training
    evaluation: Evaluation = Evaluation()
    health: Health = Health()
    tracking: Tracking = Tracking()
    export: Export = Export()
    run: Run

    @property
    def beyond_limit(self) -> int:
        """Tokens by which a prompt and its scored reply may exceed `model.max_seq_length`, which
        rows fit."""
        return self.evaluation.max_new_tokens

    @model_validator(mode="after")
    def _validation_has_rows_and_time(self) -> Self:
        every, run = self.evaluation.every, self.run
        if not self.data.validation and "validation" in self.data.model_fields_set:
            return self  # switched off, whatever a config has beside it
        needs = {
            "evaluation.every": every,
            "run.patience": run.patience,
            "run.keep = best": run.keep == "best",
        }
        needed = [name for name, value in needs.items() if value]
        if needed and not self.data.validation:
            raise ValueError(
                f"{needed[0]} needs rows to validate on; set data.validation to their number"
            )
        if run.patience and not every:
            raise ValueError(
                "run.patience needs evaluation.every, the steps between two validations"
            )
        if every and not self.training.safe_to_save(every):
            raise ValueError(
                f"evaluation.every = {every} falls between two generations, where no checkpoint "
                "can be taken; make it a multiple of what training.save_steps has to be a multiple "
                "of"
            )
        return self


class DPOSettings(_Trained):
    """Settings of scripts/dpo.py."""

    method: Literal["dpo"] = "dpo"
    """How the model is trained; a run records it for its readers."""
    data: PairData
    training: DPOTraining
    evaluation: PairEvaluation = PairEvaluation()
    health: PairHealth = PairHealth()

    @model_validator(mode="after")
    def _room_for_replies(self) -> Self:
        for problems in self.evaluation.also:
            if problems.max_new_tokens >= self.model.max_seq_length:
                raise ValueError(
                    f"evaluation.also: {problems.name}: max_new_tokens = {problems.max_new_tokens} "
                    "leaves no room for a question in model.max_seq_length = "
                    f"{self.model.max_seq_length}"
                )
        return self


class GRPOSettings(_Trained):
    """Settings of scripts/grpo.py."""

    method: Literal["grpo"] = "grpo"
    """How the model is trained; a run records it for its readers."""
    model: RolloutModel
    data: ProblemData
    rewards: dict[str, float] = Field({"format": 1.0, "correctness": 1.0}, min_length=1)
    """Reward functions and their weights: a name of rewards/, `file.py:function` or
    `package.module:function`."""
    training: GRPOTraining
    health: ProblemHealth = ProblemHealth()

    @property
    def beyond_limit(self) -> int:
        """As of every method, where prompts leave room for a completion of training."""
        return max(0, self.evaluation.max_new_tokens - self.training.max_completion_length)

    @model_validator(mode="after")
    def _rewards_and_completions(self) -> Self:
        if not any(self.rewards.values()):
            raise ValueError(
                "rewards: every weight is 0, so no completion is better than another; give at "
                "least one reward a weight, such as correctness: 1.0"
            )
        longest, limit = self.training.max_completion_length, self.model.max_seq_length
        if longest >= limit:
            raise ValueError(
                f"training.max_completion_length = {longest} leaves no room for a prompt in "
                f"model.max_seq_length = {limit}"
            )
        return self


class SFTSettings(_Trained):
    """Settings of scripts/sft.py."""

    method: Literal["sft"] = "sft"
    """How the model is trained; a run records it for its readers."""
    data: ReplyData
    training: SFTTraining

    @model_validator(mode="after")
    def _something_to_score_exports_on(self) -> Self:
        if self.export.score and self.data.problems is None:
            raise ValueError(
                "export.score compares answers to data.problems; name some, or set it to false"
            )
        return self


TrainingSettings = DPOSettings | GRPOSettings | SFTSettings
"""The settings of any training script."""
