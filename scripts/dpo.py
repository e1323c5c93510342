"""DPO of a chat model on French preference pairs, with a 4-bit LoRA policy.

The loss is -log sigmoid(beta (log pi(y_c|x)/ref(y_c|x) - log pi(y_r|x)/ref(y_r|x))), equation 7 of
"Direct Preference Optimization" (https://arxiv.org/abs/2305.18290), over pairs of a chosen and a
rejected reply to the same prompt. Unlike the paper, the policy is a LoRA adapter on quantised
weights, and the reference is the policy as loaded: the same weights with the adapter off or, with
`model.adapter`, with that adapter. Only one model is in memory.

    ./run dpo --config configs/dpo_french_16gb.yaml
    ./run dpo --config configs/dpo_demo.yaml training.beta=0.2 --resume never
"""

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.measures import compare
from eval.preference import Pair
from posttrain.base.process import run_main
from posttrain.data.pairs import Lengths, PairSet, load_pair_set, measure
from posttrain.data.prompted import user_turns
from posttrain.data.render import drop_overlong, render, without_added_tokens
from posttrain.data.report import build as pair_report
from posttrain.data.report import text as pair_report_text
from posttrain.data.text import check_examples
from posttrain.model.provenance import refuse_earlier_stages
from posttrain.model.recipe import describe
from posttrain.model.shape import shape_of
from posttrain.run.folder import RunFolder
from posttrain.scoring import pairs as scoring
from posttrain.scoring.changed_reply import example
from posttrain.settings import DPOSettings
from posttrain.train import reference_cache, trainers
from posttrain.train.arguments import build_arguments, owned_arguments, report_changes
from posttrain.train.session import Session

PROGRESS = {"rewards/margins": "margin", "rewards/accuracies": "accuracy", "loss": "loss"}


def main(argv: list[str] | None = None) -> int:
    """Score, train, score again; returns the exit code."""
    session = Session(DPOSettings, __doc__, argv)
    if session.done:
        return session.show_result()
    settings, run = session.settings, session.run

    # Pairs, checked before anything heavy is loaded and reported on before the model is.
    pairs = load_pair_set(settings.data, settings.prompt)
    all_pairs = [*pairs.train, *pairs.held_out, *pairs.validation]
    check_examples(settings.prompt.examples, user_turns(all_pairs))
    tokenizer = session.start()
    trainer_arguments(settings, run)  # refused here, not after the model is loaded
    data_report, lengths = examine(pairs, tokenizer, settings)
    if session.dry_run:
        print(pair_report_text.render_text(data_report))
    else:
        print(pair_report_text.render_warnings(data_report), end="")
    train_pairs, held_out, validation = fitting(pairs, lengths, settings)
    problems = scoring.load_problems(settings, [*train_pairs, *validation], tokenizer)
    questions = (problem.question for each in problems.values() for problem in each)
    refuse_earlier_stages(settings.model, [*user_turns(held_out), *questions])
    rows = [*train_pairs, *held_out, *problems.items(), *validation]
    if session.dry_run:
        print(describe(settings, shape_of(settings.model.name), len(train_pairs)))
        return session.end_dry_run(rows)

    # The policy, scored before its first step.
    session.open(rows, user_turns([*train_pairs, *validation]))
    pair_report.write(data_report, run.path)
    model, tokenizer = session.load()
    before = session.resume.kept_scores(lambda: scoring.read_scores(run, settings))
    if settings.run.score and not before:
        before = scoring.score(model, tokenizer, held_out, problems, settings, run, "before")

    # Training, with the pairs to validate on scored now and then.
    trainer, changed = build_trainer(model, tokenizer, train_pairs, settings, run)
    validator = scoring.validator(model, tokenizer, validation, settings) if validation else None
    ended = session.train(trainer, changed, PROGRESS, validator)
    if ended is not None or before is None:  # stopped early, or not to be scored
        return ended or 0

    # The same pairs, prompts and problems after the last step.
    after = scoring.score(model, tokenizer, held_out, problems, settings, run, "after")
    print(f"\n{example(held_out, before.replies, after.replies)}")
    return session.finish(compare(before.measures(), after.measures()))


def examine(
    pairs: PairSet, tokenizer: Any, settings: DPOSettings
) -> tuple[dict[str, Any], list[list[Lengths]]]:
    """The data report, and the token lengths of the pairs to train on, held out, to validate on."""
    sides = (pairs.train, pairs.held_out, pairs.validation)
    lengths = [measure(side, tokenizer) for side in sides]
    limit, language = settings.model.max_seq_length, settings.data.language or "fr"
    return pair_report.build(pairs, lengths, tokenizer, limit, language), lengths


def fitting(
    pairs: PairSet, lengths: list[list[Lengths]], settings: DPOSettings
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The pairs to train on, to score and to validate on that fit model.max_seq_length."""
    limit, rule = settings.model.max_seq_length, settings.data.overlong
    sides = {"training": pairs.train, "held-out": pairs.held_out, "validation": pairs.validation}
    train, held_out, validation = (
        drop_overlong(side, [length.total for length in measured], limit, rule, f"{name} pairs")
        for (name, side), measured in zip(sides.items(), lengths, strict=True)
    )
    held_out = held_out[: settings.evaluation.limit]
    counts = f"{len(train)} pairs to train on, {len(held_out)} held out"
    print(f"{counts}, {len(validation)} to validate on" if validation else counts)
    return train, held_out, validation


def trainer_rows(pairs: list[Pair], tokenizer: Any) -> list[dict[str, str]]:
    """Pairs as rendered text: trl then ends each reply with one EOS and scores nothing after it.

    Given message lists instead, trl renders the reply as a full turn, and many templates end a
    turn with a newline after EOS, which the policy would be trained to produce.
    """
    return [
        {
            "prompt": render(tokenizer, pair.conversation),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for pair in pairs
    ]


def trainer_arguments(settings: DPOSettings, run: RunFolder) -> tuple[Any, dict[str, Any]]:
    """trl's DPOConfig, and all arguments that it was built with."""
    from trl import DPOConfig

    owned = {
        **owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "max_length": settings.model.max_seq_length,
        "precompute_ref_log_probs": False,  # reference_cache.py does it, and keeps the result
    }
    if settings.lora.dropout:  # by default trl turns all dropout off
        owned["disable_dropout"] = False
    return build_arguments(DPOConfig, settings.training, owned, settings.run.verbose)


def build_trainer(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings, run: RunFolder
) -> tuple[Any, dict[str, Any]]:
    """trl's DPOTrainer, and the arguments that it or Unsloth changed."""
    from datasets import Dataset
    from trl import DPOTrainer

    arguments, requested = trainer_arguments(settings, run)
    with without_added_tokens(tokenizer):
        trainer = trainers.guarded_dpo(DPOTrainer)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(trainer_rows(pairs, tokenizer)),
            processing_class=tokenizer,
        )
    trainers.check_full_batches(trainer, len(pairs))
    if settings.training.precompute_ref_log_probs:
        reference_cache.precompute(trainer)
    return trainer, report_changes(requested, trainer.args)


if __name__ == "__main__":
    run_main(main)
