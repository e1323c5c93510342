"""DPO of a chat model on French preference pairs, with a 4-bit LoRA policy.

The loss is -log sigmoid(beta (log pi(y_c|x)/ref(y_c|x) - log pi(y_r|x)/ref(y_r|x))), equation 7 of
"Direct Preference Optimization" (https://arxiv.org/abs/2305.18290), over pairs of a chosen and a
rejected reply to the same prompt. Unlike the paper, the policy is a LoRA adapter on quantised
weights, and the reference is the same weights with the adapter off, so only one model is in memory.

    ./run dpo --config configs/dpo_french_16gb.yaml
    ./run dpo --config configs/dpo_demo.yaml training.beta=0.2 --resume never
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.preference import Pair
from posttrain import report
from posttrain.base.files import fingerprint
from posttrain.base.process import run_main
from posttrain.data.pairs import PairSet, load_pair_set
from posttrain.data.render import drop_overlong, render
from posttrain.data.report import build as pair_report
from posttrain.data.report import lengths as pair_lengths
from posttrain.data.report import text as pair_report_text
from posttrain.export.launch import after_training
from posttrain.model import adapter, policy, trust
from posttrain.model.device import check_device
from posttrain.report.model_card import write_model_card
from posttrain.run.checkpoint import check_same_run
from posttrain.run.folder import RunFolder
from posttrain.scoring import pairs as scoring
from posttrain.scoring import problem_sets
from posttrain.scoring.side_by_side import example
from posttrain.settings import DPOSettings
from posttrain.settings.command import parse_command_line
from posttrain.train import batches, guarded_trainers, loop, reference_cache
from posttrain.train.arguments import build_arguments, owned_arguments, report_changes
from posttrain.train.trackers.start import keep_files_in, start_trackers

CONFIG_CLASS = "trl/trainer/dpo_config.py:DPOConfig"
PROGRESS = {"rewards/margins": "margin", "rewards/accuracies": "accuracy", "loss": "loss"}


def main(argv: list[str] | None = None) -> int:
    """The story of a run; returns the exit code."""
    command = parse_command_line(DPOSettings, CONFIG_CLASS, __doc__ or "", argv)
    settings = command.settings
    run = RunFolder(command.output)
    if not command.dry_run and run.is_done(settings, command.resume):
        return report.already_finished(run.shared) or after_training(run.path, settings.export)
    checkpoint = run.checkpoint(command.resume)
    keep_files_in(run, settings.tracking.report_to)

    # Pairs, checked and reported on before anything heavy is loaded.
    pairs = load_pair_set(settings.data, settings.prompt)
    if command.dry_run:
        dry_run(pairs, settings)
        print(command.verdict())
        return 0
    device = policy.start(settings.run.verbose, settings.run.threads)
    print(check_device(device, settings.model, settings.training))
    tokenizer = policy.load_tokenizer(settings.model)
    data_report, lengths = examine(pairs, tokenizer, settings)
    train_pairs, held_out = fitting(pairs, lengths, settings)
    problems = problem_sets.load(settings, train_pairs, tokenizer)
    print(pair_report_text.render_warnings(data_report), end="")

    # The run folder and the policy, scored before the first step.
    facts: dict[str, Any] = {
        "device": device.name,
        "weights": policy.base_weights(settings.model),
        "data": fingerprint([*train_pairs, *held_out, *problems.items()]),
    }
    identity = run.identity(settings, facts)
    if checkpoint:
        trust.check_checkpoint(checkpoint)
        if not command.resume_anyway:
            check_same_run(checkpoint, identity)
    run.open(fresh=command.resume == "never")
    pair_report.write(data_report, run.path)
    run.describe(settings, facts)
    trackers = start_trackers(run, settings, facts)
    print(f"Loading {settings.model.name}")
    model, tokenizer = policy.load(
        settings.model, settings.lora, settings.training, settings.run.verbose
    )
    loop.check_room(model, settings, run)
    same_run = checkpoint is not None and not command.resume_anyway
    kept = scoring.read_scores(run, settings) if same_run else None
    if checkpoint:
        print(loop.going_on(checkpoint, settings.training, run, kept is not None))
    before = kept or scoring.score(model, tokenizer, held_out, problems, settings, run, "before")

    # Training.
    trainer, changed = build_trainer(model, tokenizer, train_pairs, settings, run)
    trainer.add_callback(trackers.callback())
    facts["changed_arguments"] = changed
    facts["trained"] = loop.train(trainer, settings, run, PROGRESS, checkpoint, identity)
    if loop.stopped_early(facts, run):
        trackers.close(facts["trained"]["exit_code"])
        return int(facts["trained"]["exit_code"])
    policy.save_adapter(model, tokenizer, run.adapter)

    # The same pairs, prompts and problems after the last step.
    after = scoring.score(model, tokenizer, held_out, problems, settings, run, "after")
    run.describe(settings, facts)
    run.write_comparison(scoring.compare_scores(before, after))
    write_model_card(run.path)
    print(f"\n{example(held_out, before.replies, after.replies)}")
    report.finish(run.path)
    trackers.finish()
    return after_training(run.path, settings.export)


def dry_run(pairs: PairSet, settings: DPOSettings) -> None:
    """Print the data report; refuse what a run would refuse.

    The tokenizer is the run's, but neither Unsloth nor torch is imported: it needs neither, and
    their import takes longer than the report. The process is of no use for a model afterwards.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # transformers then goes without
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # and would warn of it
    tokenizer = policy.load_tokenizer(settings.model)
    found, lengths = examine(pairs, tokenizer, settings)
    print(pair_report_text.render_text(found), end="\n\n")
    train_pairs, _ = fitting(pairs, lengths, settings)
    problem_sets.load(settings, train_pairs, tokenizer)


def examine(
    pairs: PairSet, tokenizer: Any, settings: DPOSettings
) -> tuple[dict[str, Any], list[list[pair_lengths.Lengths]]]:
    """The data report, and the token lengths of the pairs to train on and of those held out."""
    lengths = [pair_lengths.measure(side, tokenizer) for side in (pairs.train, pairs.held_out)]
    limit, language = settings.model.max_seq_length, settings.data.language or "fr"
    return pair_report.build(pairs, lengths, tokenizer, limit, language), lengths


def fitting(
    pairs: PairSet, lengths: list[list[pair_lengths.Lengths]], settings: DPOSettings
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those to score that fit model.max_seq_length."""
    sides = ((pairs.train, "training pairs"), (pairs.held_out, "held-out pairs"))
    limit, rule = settings.model.max_seq_length, settings.data.overlong
    train, held_out = (
        drop_overlong(side, [length.whole for length in measured], limit, rule, what)
        for (side, what), measured in zip(sides, lengths, strict=True)
    )
    held_out = held_out[: settings.evaluation.limit]
    print(f"{len(train)} pairs to train on, {len(held_out)} held out")
    return train, held_out


def trainer_rows(pairs: list[Pair], tokenizer: Any) -> list[dict[str, str]]:
    """Pairs as rendered text: trl then ends each reply with one EOS and scores nothing after it.

    Given message lists instead, trl renders the reply as a whole turn, and Qwen's template ends a
    turn with a newline after EOS, which the policy would be trained to produce.
    """
    return [
        {
            "prompt": render(tokenizer, pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for pair in pairs
    ]


def build_trainer(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings, run: RunFolder
) -> tuple[Any, dict[str, Any]]:
    """trl's DPOTrainer, and the arguments that it or Unsloth changed."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    owned = {
        **owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "max_length": settings.model.max_seq_length,
        "precompute_ref_log_probs": False,  # reference.py does it, and keeps the result
    }
    if settings.lora.dropout:  # by default trl turns all dropout off
        owned["disable_dropout"] = False
    arguments, asked = build_arguments(DPOConfig, settings.training, owned, settings.run.verbose)
    with adapter.without_new_start(model):
        trainer = guarded_trainers.guarded_dpo(DPOTrainer)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(trainer_rows(pairs, tokenizer)),
            processing_class=tokenizer,
        )
    policy.drop_reference_copy(model)
    batches.check_whole(trainer, len(pairs))
    if settings.training.train_sampling_strategy == "group_by_length":
        batches.group_by_length(trainer)
    if settings.training.precompute_ref_log_probs:
        reference_cache.precompute(trainer)
    return trainer, report_changes(asked, trainer.args)


if __name__ == "__main__":
    run_main(main)
