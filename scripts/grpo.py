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
from eval.gsm8k import Problem, ScoredReply, compare_replies, evaluate, rescore
from posttrain import report
from posttrain.base.errors import ConfigError
from posttrain.base.files import fingerprint
from posttrain.base.process import run_main
from posttrain.data.problems import load_problems
from posttrain.data.render import drop_overlong, render, token_lengths
from posttrain.export.launch import after_training
from posttrain.model import inference, policy, trust
from posttrain.model.device import check_device
from posttrain.report.model_card import write_model_card
from posttrain.run.checkpoint import check_same_run
from posttrain.run.folder import RunFolder
from posttrain.settings import GRPOSettings
from posttrain.settings.command import parse_command_line
from posttrain.train import guarded_trainers, loop
from posttrain.train.arguments import build_arguments, owned_arguments, report_changes
from posttrain.train.samples import SampleRecorder
from posttrain.train.trackers.start import keep_files_in, start_trackers

CONFIG_CLASS = "trl/trainer/grpo_config.py:GRPOConfig"
PROGRESS = {
    "reward": "reward",
    "reward_std": "std",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "cut",
}


def main(argv: list[str] | None = None) -> int:
    """The story of a run; returns the exit code."""
    command = parse_command_line(GRPOSettings, CONFIG_CLASS, __doc__ or "", argv)
    settings = command.settings
    run = RunFolder(command.output)
    if not command.dry_run and run.is_done(settings, command.resume):
        return report.already_finished(run.shared) or after_training(run.path, settings.export)
    checkpoint = run.checkpoint(command.resume)
    keep_files_in(run, settings.tracking.report_to)

    # Problems and rewards, checked before anything heavy is loaded.
    train_problems, held_out = load_problems(settings.data)
    functions = load_rewards(settings, train_problems[0])
    device = policy.start(settings.run.verbose, settings.run.threads)
    print(check_device(device, settings.model, settings.training))
    tokenizer = policy.load_tokenizer(settings.model)
    train_problems = fitting(train_problems, tokenizer, settings, "training problems")
    held_out = fitting(held_out, tokenizer, settings, "held-out problems")
    held_out = held_out[: settings.evaluation.limit]
    print(f"{len(train_problems)} problems to train on, {len(held_out)} held out")
    if command.dry_run:
        print_example(train_problems[0], tokenizer, settings, functions)
        print(command.verdict())
        return 0

    # The run folder and the policy, scored before the first step.
    facts: dict[str, Any] = {
        "device": device.name,
        "weights": policy.base_weights(settings.model),
        "data": fingerprint([*train_problems, *held_out]),
    }
    identity = run.identity(settings, facts)
    if checkpoint:
        trust.check_checkpoint(checkpoint)
        if not command.resume_anyway:
            check_same_run(checkpoint, identity)
    run.open(fresh=command.resume == "never")
    run.describe(settings, facts)
    trackers = start_trackers(run, settings, facts)
    print(f"Loading {settings.model.name}")
    model, tokenizer = policy.load(
        settings.model, settings.lora, settings.training, settings.run.verbose
    )
    loop.check_room(model, settings, run)
    same_run = checkpoint is not None and not command.resume_anyway
    kept = read_scores(run) if same_run else None
    if checkpoint:
        print(loop.going_on(checkpoint, settings.training, run, kept is not None))
    before = kept or score(model, tokenizer, held_out, settings, run, "before")

    # Training.
    trainer, changed = build_trainer(model, tokenizer, train_problems, settings, functions, run)
    trainer.add_callback(trackers.callback())
    facts["changed_arguments"] = changed
    facts["trained"] = loop.train(trainer, settings, run, PROGRESS, checkpoint, identity)
    if loop.stopped_early(facts, run):
        trackers.close(facts["trained"]["exit_code"])
        return int(facts["trained"]["exit_code"])
    policy.save_adapter(model, tokenizer, run.adapter)

    # The same problems after the last step.
    after = score(model, tokenizer, held_out, settings, run, "after")
    run.describe(settings, facts)
    run.write_comparison(compare_replies(before, after))
    write_model_card(run.path)
    report.finish(run.path)
    trackers.finish()
    return after_training(run.path, settings.export)


def load_rewards(settings: GRPOSettings, sample: Problem) -> dict[str, rewards.RewardFunction]:
    """The reward functions that the settings name, each tried on one row and its range printed."""
    row = trainer_row(sample, settings)
    try:
        functions = {name: rewards.resolve(name) for name in settings.rewards}
        for name, function in functions.items():
            print(f"reward {rewards.check_reward(name, function, row).describe()}")
    except rewards.RewardError as error:
        raise ConfigError(f"rewards: {error}") from None
    return functions


def fitting(
    problems: list[Problem], tokenizer: Any, settings: GRPOSettings, what: str
) -> list[Problem]:
    """The problems whose prompt leaves room for a whole completion in model.max_seq_length."""
    conversations = [conversation(p.question, settings.prompt.system) for p in problems]
    lengths = token_lengths(tokenizer, [render(tokenizer, c) for c in conversations])
    limit = settings.model.max_seq_length - settings.training.max_completion_length
    return drop_overlong(problems, lengths, limit, settings.data.overlong, what)


def trainer_row(problem: Problem, settings: GRPOSettings) -> dict[str, Any]:
    """What trl gets of a problem: its prompt, and the columns that the rewards read."""
    prompt = conversation(problem.question, settings.prompt.system)
    own = {"question": problem.question, "answer": problem.answer}
    return {"prompt": prompt, **own, **problem.columns}


def print_example(
    problem: Problem, tokenizer: Any, settings: GRPOSettings, functions: dict[str, Any]
) -> None:
    """Show a prompt as the policy will see it, and what sample completions would earn."""
    row = trainer_row(problem, settings)
    print(f"\nprompt:\n{render(tokenizer, row['prompt'])}\ngold answer: {problem.answer}")
    right = f"<answer>{problem.answer}</answer>"
    completions = [f"Step by step.\n{right}", f"It is {problem.answer}.", f"{right} indeed"]
    try:
        earned = {
            name: rewards.check_reward(name, function, row, completions).values
            for name, function in functions.items()
        }
    except rewards.RewardError as error:
        raise ConfigError(f"rewards: {error}") from None
    for place, completion in enumerate(completions):
        parts, total = [], 0.0
        for name, values in earned.items():
            value = values[place]
            weight = settings.rewards[name]
            times = "" if weight == 1 else f"{weight:g} x "
            parts.append(f"{times}{name} {'none' if value is None else f'{value:g}'}")
            total += weight * (value or 0.0)
        print(f"completion {completion!r} earns {' + '.join(parts)} = {total:g}")


def score(
    model: Any, tokenizer: Any, problems: list[Problem], settings: GRPOSettings, run: Any, side: str
) -> list[ScoredReply]:
    """Answer the held-out problems with the prompt used in training, and score the replies."""
    print(f"Scoring {len(problems)} held-out problems ({side} training)")
    generate = inference.generator(model, tokenizer, settings.evaluation, settings.training.seed)
    replies = evaluate(problems, generate, settings.prompt.system)
    run.write_rows(side, [reply.as_row() for reply in replies])
    return replies


def read_scores(run: RunFolder) -> list[ScoredReply] | None:
    """The scores that an interrupted run took before its first step."""
    rows = run.read_rows("before")
    return None if rows is None else [rescore(row) for row in rows]


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
    from trl import GRPOConfig, GRPOTrainer

    owned = {
        **owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "reward_weights": list(settings.rewards.values()),
    }
    arguments, asked = build_arguments(GRPOConfig, settings.training, owned, settings.run.verbose)
    rows = [trainer_row(problem, settings) for problem in problems]
    recorder = SampleRecorder(
        run.samples, settings.tracking.samples, settings.training.num_generations
    )
    trainer = guarded_trainers.guarded_grpo(GRPOTrainer)(
        model=model,
        reward_funcs=recorder.wrap(functions),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    policy.drop_reference_copy(model)
    return trainer, report_changes(asked, trainer.args)


if __name__ == "__main__":
    run_main(main)
