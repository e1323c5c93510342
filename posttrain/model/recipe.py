"""The sizes of a config: rollouts or pairs a step, steps, tokens at most, peak memory.

And a note where its learning rate is far from those that are known to work with LoRA.
"""

from dataclasses import dataclass
from math import ceil

from posttrain.base import terminal
from posttrain.model.estimate import GPU, estimate, this_cpu
from posttrain.model.shape import Shape
from posttrain.settings import GRPOSettings, SFTSettings
from posttrain.settings import TrainingSettings as Settings

LEARNING_RATES = {"grpo": (3e-6, 4e-5), "dpo": (5e-6, 1e-5), "sft": (1e-5, 5e-4)}
"""The lowest and the highest learning rate of runs with LoRA in docs/recipes.md."""
SMALL = 200_000_000  # weights; the models of those runs have 0.5 billion and more


@dataclass(frozen=True)
class Recipe:
    """Sizes of a run. What depends on the data is None where its rows are not counted."""

    rows_a_step: int
    """Completions (GRPO), pairs (DPO) or replies (SFT) that an optimizer step learns from."""
    group: int  # completions of one prompt; 1 for pairs
    parts: int  # generations of a step; 0 for pairs
    length: int  # tokens of a completion, or of a pair's prompt and reply, at most
    epochs: float | None
    steps: int | None
    unit: str = "pairs"  # what a row is, where it is not a completion

    @property
    def sequences(self) -> int:
        """Of a row: both replies of a pair are one each."""
        return 2 if self.unit == "pairs" and not self.parts else 1

    @property
    def tokens_a_step(self) -> int:
        """Tokens of a step at most: of completions, or of every sequence of a row."""
        return self.rows_a_step * self.length * self.sequences

    @property
    def tokens(self) -> int | None:
        """Tokens of the run at most."""
        return None if self.steps is None else self.steps * self.tokens_a_step

    def step(self) -> str:
        if not self.parts:
            return f"{self.rows_a_step} {self.unit}"
        sampled = f", sampled in {self.parts} parts" if self.parts > 1 else ""
        prompts = f"{self.rows_a_step // self.group} prompts x {self.group} completions"
        return f"{prompts} = {self.rows_a_step} rollouts{sampled}"

    def duration(self) -> str:
        """Steps and epochs, described as far as they are known."""
        if self.epochs is None:
            return f"{self.steps:,}"
        epochs = f"{self.epochs:.3g}"
        epochs += " epoch" if epochs == "1" else " epochs"
        return epochs if self.steps is None else f"{self.steps:,} ({epochs})"


def recipe(settings: Settings, rows: int | None = None) -> Recipe:
    """The sizes of a run in one process, on `rows` of training data where they are counted."""
    training = settings.training
    at_once = training.per_device_train_batch_size
    accumulated = training.gradient_accumulation_steps
    if not isinstance(settings, GRPOSettings):
        group, parts, reused, length = 1, 0, 1, settings.model.max_seq_length
        batches = None if rows is None else ceil(rows / at_once)
    else:
        grpo = settings.training
        group, length = grpo.num_generations, grpo.max_completion_length
        reused = grpo.num_iterations
        generated = grpo.steps_per_generation or accumulated  # micro-batches
        parts = max(1, accumulated // (generated * reused))
        prompts = at_once * generated // group  # of a generation, in trl's sampler
        batches = None if rows is None else rows // prompts * generated * reused
    steps = None if training.max_steps < 0 else training.max_steps
    epochs = training.num_train_epochs if steps is None else None
    if rows and batches:
        if steps is None:
            steps = ceil(training.num_train_epochs * ceil(batches / accumulated))
        else:
            epochs = steps * accumulated / batches
    unit = "replies" if isinstance(settings, SFTSettings) else "pairs"
    return Recipe(at_once * accumulated, group, parts, length, epochs, steps, unit)


def learning_rate_note(settings: Settings, shape: Shape | None) -> str | None:
    """A sentence where the learning rate is outside LEARNING_RATES; None where it is inside, or
    where the model is small or of unknown size."""
    low, high = LEARNING_RATES[settings.method]
    rate = settings.training.learning_rate
    if shape is None or shape.layer_weights + shape.embeddings < SMALL or low <= rate <= high:
        return None
    return (
        f"training.learning_rate {rate:g} is outside the {low:g} to {high:g} that "
        f"docs/recipes.md gives for {settings.method.upper()} with LoRA"
    )


def describe(settings: Settings, shape: Shape | None, rows: int) -> str:
    """Lines for a dry run."""
    sizes = recipe(settings, rows)
    times = f"{sizes.rows_a_step} x {sizes.length}" + (" x 2" if sizes.sequences == 2 else "")
    lines = [("a step", sizes.step()), ("steps", sizes.duration())]
    if sizes.tokens is not None:
        most = f"{sizes.tokens / 1e6:,.1f} million ({sizes.steps:,} x {times})"
        lines.append(("tokens at most", most))
    if shape is not None:
        import torch

        on_gpu = settings.model.min_gpu_memory_gb or torch.cuda.is_available()
        device = GPU if on_gpu else this_cpu()
        peak = f"{estimate(settings, shape, device)['peak']:.1f} GB"
        lines.append(("peak memory", f"{peak}, estimated (the terms: ./run doctor --memory)"))
    if note := learning_rate_note(settings, shape):
        lines.append(("note", note))
    return "\n".join(["\nrecipe", *(terminal.entry(*line, label_width=18) for line in lines)])
