"""DPO of a chat model on French preference pairs, with a 4-bit LoRA policy.

The loss is -log sigmoid(beta (log pi(y_c|x)/ref(y_c|x) - log pi(y_r|x)/ref(y_r|x))), equation 7 of
"Direct Preference Optimization" (https://arxiv.org/abs/2305.18290), over pairs of a chosen and a
rejected reply to the same prompt. Unlike the paper, the policy is a LoRA adapter on quantised
weights, and the reference is the same weights with the adapter off, so only one model is in memory.

    python scripts/dpo.py --config configs/dpo_french_16gb.yaml
    python scripts/dpo.py --config configs/dpo_demo.yaml training.beta=0.2 --resume never
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.language import in_language
from eval.preference import Pair, ScoredPair, as_row, compare_pairs, score_pairs
from scripts.common import config, data, inference, policy, report, tracking, training
from scripts.common.checkpoint import check_same_run
from scripts.common.errors import run_main
from scripts.common.settings import DPOSettings

CONFIG_CLASS = "trl/trainer/dpo_config.py:DPOConfig"
PROGRESS = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
Scores = tuple[list[ScoredPair], list[float]]


def main(argv: list[str] | None = None) -> int:
    """The story of a run; returns the exit code."""
    command = config.parse_command_line(DPOSettings, CONFIG_CLASS, __doc__ or "", argv)
    settings = command.settings
    run = tracking.RunFolder(command.output)
    if command.resume == "auto" and run.finished:
        return report.already_finished(run.path)
    checkpoint = run.checkpoint(command.resume)

    # Pairs, checked before anything heavy is loaded.
    train_pairs, held_out = data.load_pairs(settings.data, settings.prompt)
    device = policy.start(settings.run.verbose, settings.run.threads)
    print(policy.check_device(device, settings.model, settings.training))
    tokenizer = policy.load_tokenizer(settings.model)
    train_pairs = fitting(train_pairs, tokenizer, settings, "training pairs")
    held_out = fitting(held_out, tokenizer, settings, "held-out pairs")[: settings.evaluation.limit]
    print(f"{len(train_pairs)} pairs to train on, {len(held_out)} held out")
    if command.dry_run:
        print_example(train_pairs[0], tokenizer)
        return 0

    # The run folder and the policy, scored before the first step.
    run.open(fresh=command.resume == "never")
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
    before = read_scores(run) or score(model, tokenizer, held_out, settings, run, "before")

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
    print(f"\n{report.comparison_table([run.path])}\n\nAdapter and record: {run.path}")
    return 0


def fitting(pairs: list[Pair], tokenizer: Any, settings: DPOSettings, what: str) -> list[Pair]:
    """The pairs whose prompt and longer reply, with its EOS, fit model.max_seq_length."""
    prompts = inference.token_lengths(
        tokenizer, [inference.render(tokenizer, p.prompt) for p in pairs]
    )
    replies = [
        inference.token_lengths(tokenizer, [getattr(pair, side) for pair in pairs])
        for side in ("chosen", "rejected")
    ]
    lengths = [p + max(c, r) + 1 for p, c, r in zip(prompts, *replies, strict=True)]
    limit = settings.model.max_seq_length
    return data.drop_overlong(pairs, lengths, limit, settings.data.overlong, what)


def print_example(pair: Pair, tokenizer: Any) -> None:
    """Show a pair as the trainer will see it."""
    prompt = inference.render(tokenizer, pair.prompt)
    print(f"\nprompt (masked in the loss):\n{prompt}")
    for side in ("chosen", "rejected"):
        print(f"{side} (scored):\n{getattr(pair, side)}{tokenizer.eos_token}\n")


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
