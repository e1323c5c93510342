"""GRPO of a chat model on GSM8K with two verifiable rewards, with a 4-bit LoRA policy.

For each question the policy samples a group of G completions; the advantage of a completion is its
reward minus the group's mean, divided by the group's standard deviation (section 4.1 of
"DeepSeekMath", https://arxiv.org/abs/2402.03300). Rewards: 1 for ending in
`<answer>NUMBER</answer>`, 2 for the right number. Unlike the paper there is no KL term by default
(beta 0, as in https://arxiv.org/abs/2503.20783), and the policy is a LoRA adapter on quantised
weights.

    ./run grpo --config configs/grpo_gsm8k_16gb.yaml
    ./run grpo --config configs/grpo_demo.yaml training.max_steps=20 --resume never
"""

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import rewards
from eval import conversation
from eval.gsm8k import Problem, compare_replies
from eval.rewarded import reward_row
from posttrain.base.errors import DataError
from posttrain.base.process import run_main
from posttrain.data.problems import for_validation, load_problems, within_pass_rate
from posttrain.data.render import (
    already_rendered,
    drop_overlong,
    render,
    template_variables,
    token_lengths,
)
from posttrain.data.text import check_examples
from posttrain.model.provenance import refuse_earlier_stages
from posttrain.model.recipe import describe
from posttrain.model.shape import shape_of
from posttrain.run.folder import RunFolder
from posttrain.scoring import reward_functions
from posttrain.scoring import rewarded as scoring
from posttrain.settings import GRPOSettings
from posttrain.train import grpo_trainer, health
from posttrain.train.arguments import build_arguments, owned_arguments, report_changes
from posttrain.train.samples import SampleRecorder
from posttrain.train.session import Session

PROGRESS = {
    "reward": "reward",
    "reward_std": "std",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "cut",
    "frac_reward_zero_std": "flat",
}


def main(argv: list[str] | None = None) -> int:
    """Score, train, score again; returns the exit code."""
    session = Session(GRPOSettings, __doc__, argv)
    if session.done:
        return session.show_result()
    settings, run = session.settings, session.run

    # Problems and rewards, checked before anything heavy is loaded.
    train_problems, held_out = load_problems(settings.data)
    check_examples(settings.prompt.examples, (p.question for p in [*train_problems, *held_out]))
    refuse_earlier_stages(settings.model, (problem.question for problem in held_out))
    functions = load_rewards(settings, train_problems[0])
    by = scoring.scorer(settings, functions, held_out[0])
    tokenizer = session.start()
    trainer_arguments(settings, run)  # refused here, not after the model is loaded
    train_problems = fitting(train_problems, tokenizer, settings, "training problems")
    held_out = fitting(held_out, tokenizer, settings, "held-out problems")
    held_out = held_out[: settings.evaluation.limit]
    train_problems, validation = for_validation(train_problems, settings.data)
    train_problems = within_pass_rate(train_problems, settings.data)
    check_enough(len(train_problems), settings)
    counts = f"{len(train_problems)} problems to train on, {len(held_out)} held out"
    print(f"{counts}, {len(validation)} to validate on" if validation else counts)
    rows = [*train_problems, *held_out, *validation]
    if session.dry_run:
        print_example(train_problems[0], tokenizer, settings, functions)
        print(describe(settings, shape_of(settings.model.name), len(train_problems)))
        return session.end_dry_run(rows)

    # The policy, scored before its first step.
    session.open(rows, (problem.question for problem in [*train_problems, *validation]))
    model, tokenizer = session.load()
    before = session.resume.kept_scores(lambda: scoring.read_scores(run, held_out, by))
    if settings.run.score and not before:
        before = scoring.score(model, tokenizer, held_out, settings, run, "before", by)
        if note := health.cold_start_note(before, settings.model.name, session.config):
            print(note)

    # Training, with the problems to validate on scored now and then.
    trainer, changed = build_trainer(model, tokenizer, train_problems, settings, functions, run)
    measures = scoring.validator(model, tokenizer, validation, settings, by)
    ended = session.train(trainer, changed, PROGRESS, measures if validation else None)
    if ended is not None or before is None:  # stopped early, or not to be scored
        return ended or 0

    # The same problems after the last step.
    after = scoring.score(model, tokenizer, held_out, settings, run, "after", by)
    return session.finish(compare_replies(before, after))


def load_rewards(settings: GRPOSettings, sample: Problem) -> dict[str, rewards.RewardFunction]:
    """The reward functions that the settings name, each tried on one row and its range printed."""
    functions = reward_functions.load(settings.rewards, settings.data.answers)
    for line in reward_functions.tried(functions, reward_row(sample, settings.prompt)):
        print(f"reward {line}")
    return functions


def fitting(
    problems: list[Problem], tokenizer: Any, settings: GRPOSettings, what: str
) -> list[Problem]:
    """The problems whose prompt leaves room for a complete completion in model.max_seq_length."""
    if rendered := already_rendered(tokenizer, ((p.where, [p.question]) for p in problems)):
        print(f"warning: {what}: {rendered['text']}")
    prompts = [render(tokenizer, conversation(p.question, settings.prompt)) for p in problems]
    lengths = token_lengths(tokenizer, prompts)
    limit = settings.model.max_seq_length - settings.training.max_completion_length
    return drop_overlong(problems, lengths, limit, settings.data.overlong, what)


def check_enough(problems: int, settings: GRPOSettings) -> None:
    """Raise DataError without problems for one generation: trl leaves out what does not fill it."""
    training = settings.training
    batches = training.steps_per_generation or training.gradient_accumulation_steps
    rows = training.per_device_train_batch_size * batches
    needed = rows // training.num_generations
    if problems < needed and training.max_steps != 0:
        raise DataError(
            f"{settings.data.train.path}: {problems} problems to train on, and a generation takes "
            f"{needed} (per_device_train_batch_size x gradient_accumulation_steps / "
            "num_generations): nothing would be trained. Give more, set fewer aside "
            "(data.validation), or make the batch smaller"
        )


def print_example(
    problem: Problem, tokenizer: Any, settings: GRPOSettings, functions: dict[str, Any]
) -> None:
    """Show a prompt as the policy will see it, and what sample completions would earn."""
    row = reward_row(problem, settings.prompt)
    print(f"\nprompt:\n{render(tokenizer, row['prompt'])}\ngold answer: {problem.answer}")
    right = f"<answer>{problem.answer}</answer>"
    completions = [f"Step by step.\n{right}", f"It is {problem.answer}.", f"{right} indeed"]
    if settings.data.answers == "text":
        completions = [problem.answer, f"Step by step.\n{problem.answer}", right]
    with reward_functions.reward_errors():
        earned = {
            name: rewards.check_reward(name, function, row, completions)
            for name, function in functions.items()
        }
    for i, completion in enumerate(completions):
        parts, total = [], 0.0
        for name, values in earned.items():
            value, weight = values[i], settings.rewards[name]
            times = "" if weight == 1 else f"{weight:g} x "
            parts.append(f"{times}{name} {'none' if value is None else f'{value:g}'}")
            total += weight * (value or 0.0)
        print(f"completion {completion!r} earns {' + '.join(parts)} = {total:g}")


def trainer_arguments(settings: GRPOSettings, run: RunFolder) -> tuple[Any, dict[str, Any]]:
    """trl's GRPOConfig, and all arguments that it was built with."""
    from trl import GRPOConfig

    owned = {
        **owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "reward_weights": list(settings.rewards.values()),
        "chat_template_kwargs": settings.prompt.chat_template_kwargs,
    }
    return build_arguments(GRPOConfig, settings.training, owned, settings.run.verbose)


def build_trainer(
    model: Any,
    tokenizer: Any,
    problems: list[Problem],
    settings: GRPOSettings,
    functions: dict[str, rewards.RewardFunction],
    run: RunFolder,
) -> tuple[Any, dict[str, Any]]:
    """trl's GRPOTrainer, and the arguments that it or Unsloth changed."""
    from datasets import Dataset
    from trl import GRPOTrainer

    arguments, requested = trainer_arguments(settings, run)
    rows = [reward_row(problem, settings.prompt) for problem in problems]
    recorder = SampleRecorder(
        run.samples, settings.tracking.samples, settings.training.num_generations
    )
    trainer = grpo_trainer.guarded_grpo(GRPOTrainer)(
        model=model,
        reward_funcs=recorder.wrap(functions),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.chat_template_kwargs = template_variables(tokenizer)  # with a clock that stands still
    return trainer, report_changes(requested, trainer.args)


if __name__ == "__main__":
    run_main(main)
