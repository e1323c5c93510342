"""DPO of a chat model on French preference pairs, with a 4-bit LoRA policy.

The loss is -log sigmoid(beta (log pi(y_c|x)/ref(y_c|x) - log pi(y_r|x)/ref(y_r|x))), equation 7 of
"Direct Preference Optimization" (https://arxiv.org/abs/2305.18290), over pairs of a chosen and a
rejected reply to the same prompt. Unlike the paper, the policy is a LoRA adapter on quantised
weights, and the reference is the same weights with the adapter off, so only one model is in memory.

    python scripts/dpo.py --config configs/dpo_french_16gb.yaml
    python scripts/dpo.py --config configs/dpo_demo.yaml training.beta=0.2 --resume never
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.language import in_language
from eval.preference import Pair, ScoredPair, as_row, compare_pairs, score_pairs
from scripts.common import (
    config,
    data,
    inference,
    policy,
    report,
    tracking,
    training,
)
from scripts.common.checkpoint import check_same_run
from scripts.common.errors import run_main
from scripts.common.model_card import write_model_card
from scripts.common.pairs import lengths as pair_lengths
from scripts.common.pairs import report as pair_report
from scripts.common.pairs import report_text as pair_report_text
from scripts.common.settings import DPOSettings

CONFIG_CLASS = "trl/trainer/dpo_config.py:DPOConfig"
PROGRESS = {"rewards/margins": "margin", "rewards/accuracies": "accuracy", "loss": "loss"}
Scores = tuple[list[ScoredPair], list[float]]


def main(argv: list[str] | None = None) -> int:
    """The story of a run; returns the exit code."""
    command = config.parse_command_line(DPOSettings, CONFIG_CLASS, __doc__ or "", argv)
    settings = command.settings
    run = tracking.RunFolder(command.output)
    if not command.dry_run and run.is_done(settings, command.resume):
        return report.already_finished(run.path)
    checkpoint = run.checkpoint(command.resume)

    # Pairs, checked and reported on before anything heavy is loaded.
    pairs = data.load_pair_set(settings.data, settings.prompt)
    if command.dry_run:
        return dry_run(pairs, settings)
    device = policy.start(settings.run.verbose, settings.run.threads)
    print(policy.check_device(device, settings.model, settings.training))
    tokenizer = policy.load_tokenizer(settings.model)
    data_report, lengths = examine(pairs, tokenizer, settings)
    train_pairs, held_out = fitting(pairs, lengths, settings)
    print(pair_report_text.render_warnings(data_report), end="")

    # The run folder and the policy, scored before the first step.
    run.open(fresh=command.resume == "never")
    pair_report.write(data_report, run.path)
    facts: dict[str, Any] = {
        "device": device.name,
        "data": data.fingerprint([*train_pairs, *held_out]),
    }
    identity = run.identity(settings, facts)
    if checkpoint and not command.resume_anyway:
        check_same_run(checkpoint, identity)
    run.describe(settings, facts)
    print(f"Loading {settings.model.name}")
    model, tokenizer = policy.load(
        settings.model, settings.lora, settings.training, settings.run.verbose
    )
    same_run = checkpoint is not None and not command.resume_anyway
    before = (read_scores(run) if same_run else None) or score(
        model, tokenizer, held_out, settings, run, "before"
    )

    # Training.
    trainer, changed = build_trainer(model, tokenizer, train_pairs, settings, run)
    facts["changed_arguments"] = changed
    facts["trained"] = training.train(trainer, settings, run, PROGRESS, checkpoint, identity)
    if training.stopped_early(facts["trained"], run):
        return int(facts["trained"]["exit_code"])
    policy.save_adapter(model, tokenizer, run.adapter)

    # The same pairs and prompts after the last step.
    after = score(model, tokenizer, held_out, settings, run, "after")
    run.describe(settings, facts)
    run.write_comparison(compare_pairs(before, after))
    write_model_card(run.path)
    report.finish(run.path)
    return 0


def dry_run(pairs: data.PairSet, settings: DPOSettings) -> int:
    """Print the data report; refuse what a run would refuse.

    The tokenizer is the run's, but neither Unsloth nor torch is imported: it needs neither, and
    their import takes longer than the report. The process is of no use for a model afterwards.
    """
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # transformers then goes without
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # and would warn of it
    found, lengths = examine(pairs, policy.load_tokenizer(settings.model), settings)
    print(pair_report_text.render_text(found), end="\n\n")
    fitting(pairs, lengths, settings)
    return 0


def examine(
    pairs: data.PairSet, tokenizer: Any, settings: DPOSettings
) -> tuple[dict[str, Any], list[list[pair_lengths.Lengths]]]:
    """The data report, and the token lengths of the pairs to train on and of those held out."""
    lengths = [pair_lengths.measure(side, tokenizer) for side in (pairs.train, pairs.held_out)]
    limit, language = settings.model.max_seq_length, settings.data.language or "fr"
    return pair_report.build(pairs, lengths, tokenizer, limit, language), lengths


def fitting(
    pairs: data.PairSet, lengths: list[list[pair_lengths.Lengths]], settings: DPOSettings
) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those to score that fit model.max_seq_length."""
    sides = ((pairs.train, "training pairs"), (pairs.held_out, "held-out pairs"))
    limit, rule = settings.model.max_seq_length, settings.data.overlong
    train, held_out = (
        data.drop_overlong(side, [length.whole for length in measured], limit, rule, what)
        for (side, what), measured in zip(sides, lengths, strict=True)
    )
    held_out = held_out[: settings.evaluation.limit]
    print(f"{len(train)} pairs to train on, {len(held_out)} held out")
    return train, held_out


def score(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings, run: Any, side: str
) -> Scores:
    """Implicit rewards of the held-out pairs, and which replies to their prompts are French."""
    print(f"Scoring {len(pairs)} held-out pairs ({side} training)")
    batch_size = settings.evaluation.batch_size or 8
    policy_sums, reference_sums = (
        inference.pair_log_probs(model, tokenizer, pairs, batch_size, reference)
        for reference in (False, True)
    )
    scored = score_pairs(policy_sums, reference_sums, settings.training.beta)
    asked = pairs[: settings.evaluation.replies]
    generate = inference.generator(model, tokenizer, settings.evaluation, settings.training.seed)
    replies = generate([list(pair.prompt) for pair in asked])
    french = in_language([reply.text for reply in replies], "fr")
    run.write_rows(side, [as_row(p, s) for p, s in zip(pairs, scored, strict=True)])
    rows = [
        {"side": side, "prompt": pair.prompt[-1]["content"], **asdict(reply), "french": is_french}
        for pair, reply, is_french in zip(asked, replies, french, strict=True)
    ]
    run.write_rows(f"{side}_replies", rows)
    return scored, french


def read_scores(run: tracking.RunFolder) -> Scores | None:
    """The scores that an interrupted run took before its first step."""
    pairs, replies = run.read_rows("before"), run.read_rows("before_replies")
    if pairs is None or replies is None:
        return None
    scored = [ScoredPair(row["chosen_reward"], row["rejected_reward"]) for row in pairs]
    return scored, [row["french"] for row in replies]


def trainer_rows(pairs: list[Pair], tokenizer: Any) -> list[dict[str, str]]:
    """Pairs as rendered text: trl then ends each reply with one EOS and scores nothing after it.

    Given message lists instead, trl renders the reply as a whole turn, and Qwen's template ends a
    turn with a newline after EOS, which the policy would be trained to produce.
    """
    return [
        {
            "prompt": inference.render(tokenizer, pair.prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for pair in pairs
    ]


def build_trainer(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: DPOSettings, run: tracking.RunFolder
) -> tuple[Any, dict[str, Any]]:
    """trl's DPOTrainer, and the arguments that it or Unsloth changed."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    owned = {
        **training.owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "max_length": settings.model.max_seq_length,
    }
    arguments, asked = training.build_arguments(
        DPOConfig, settings.training, owned, settings.run.verbose
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(trainer_rows(pairs, tokenizer)),
        processing_class=tokenizer,
    )
    policy.drop_reference_copy(model)
    return trainer, training.report_changes(asked, trainer.args)


if __name__ == "__main__":
    run_main(main)
