"""SFT of a chat model on replies that it should learn to give, with a 4-bit LoRA policy.

The loss is the cross-entropy of the reply's tokens, end of sequence included; the prompt's tokens
have none. On a model's own right answers (data.format: replies) this is rejection sampling, as in
https://arxiv.org/abs/2308.01825: it teaches the form of a reply and leaves the rest as it was, so
that GRPO has something to reward. See docs/stages.md.

    ./run sft --config configs/sft_demo.yaml
    ./run sft --config configs/sft_demo.yaml data.keep.per_question=1 --resume never
"""

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval import Demonstration
from eval.gsm8k import Problem
from eval.measures import compare
from posttrain.base.process import run_main
from posttrain.data.demonstrations import DemonstrationSet, load_demonstrations
from posttrain.data.problems import load_scored_problems
from posttrain.data.prompted import user_turns
from posttrain.data.render import (
    already_rendered,
    drop_overlong,
    refuse_repeated,
    render,
    token_lengths,
    without_added_tokens,
)
from posttrain.data.report.examples import show_reply
from posttrain.data.text import check_examples
from posttrain.model.provenance import refuse_earlier_stages
from posttrain.model.recipe import describe
from posttrain.model.shape import shape_of
from posttrain.run.folder import RunFolder
from posttrain.scoring import demonstrations as scoring
from posttrain.settings import SFTSettings
from posttrain.train import trainers
from posttrain.train.arguments import build_arguments, owned_arguments, report_changes
from posttrain.train.session import Session

PROGRESS = {"loss": "loss", "mean_token_accuracy": "token accuracy"}


def main(argv: list[str] | None = None) -> int:
    """Score, train, score again; returns the exit code."""
    session = Session(SFTSettings, __doc__, argv)
    if session.done:
        return session.show_result()
    settings, run = session.settings, session.run

    # Replies and problems, checked before anything heavy is loaded.
    replies = load_demonstrations(settings.data, settings.prompt)
    problems = load_problems(settings, replies)
    tokenizer = session.start()
    trainer_arguments(settings, run)  # refused here, not after the model is loaded
    train, held_out, validation = fitting(replies, tokenizer, settings)
    problems = scoring.fitting(problems, tokenizer, settings)
    rows = [*train, *held_out, *problems, *validation]
    if session.dry_run:
        print(show_reply(train[0].conversation, train[0].reply, tokenizer))
        print(describe(settings, shape_of(settings.model.name), len(train)))
        return session.end_dry_run(rows)

    # The policy, scored before its first step.
    session.open(rows, user_turns([*train, *validation]))
    model, tokenizer = session.load()
    before = session.resume.kept_scores(lambda: scoring.read_scores(run))
    if settings.run.score and not before:
        before = scoring.score(model, tokenizer, held_out, problems, settings, run, "before")

    # Training, with the rows to validate on scored now and then.
    trainer, changed = build_trainer(model, tokenizer, train, settings, run)
    validator = scoring.validator(model, tokenizer, validation, settings) if validation else None
    ended = session.train(trainer, changed, PROGRESS, validator)
    if ended is not None or before is None:  # stopped early, or not to be scored
        return ended or 0

    # The same rows and problems after the last step.
    after = scoring.score(model, tokenizer, held_out, problems, settings, run, "after")
    return session.finish(compare(before.measures(), after.measures()))


def load_problems(settings: SFTSettings, replies: DemonstrationSet) -> list[Problem]:
    """The problems of data.problems, none of which may be trained on or be a worked example."""
    others = user_turns([*replies.train, *replies.validation])
    problems = load_scored_problems(settings.data.problems, others)
    problems = problems[: settings.evaluation.limit]
    held_out = [*user_turns(replies.held_out), *(problem.question for problem in problems)]
    check_examples(settings.prompt.examples, [*others, *held_out])
    refuse_earlier_stages(settings.model, held_out)
    return problems


def fitting(
    replies: DemonstrationSet, tokenizer: Any, settings: SFTSettings
) -> tuple[list[Demonstration], list[Demonstration], list[Demonstration]]:
    """The replies to train on, to score and to validate on that fit model.max_seq_length."""
    limit, rule = settings.model.max_seq_length, settings.data.overlong
    names = ("training rows", "held-out rows", "validation rows")
    given = (replies.train, replies.held_out, replies.validation)
    sides = []
    for name, side in zip(names, given, strict=True):
        prompts = [(row, render(tokenizer, row.conversation)) for row in side]
        refuse_repeated(tokenizer, ((r.where, r.conversation, p, r.reply) for r, p in prompts))
        texts = [prompt + row.reply for row, prompt in prompts]
        lengths = [length + 1 for length in token_lengths(tokenizer, texts)]  # and EOS
        sides.append(drop_overlong(side, lengths, limit, rule, name))
    texts_of = ((row.where, [row.prompt[-1]["content"], row.reply]) for row in sides[0])
    if rendered := already_rendered(tokenizer, texts_of):
        print(f"warning: training rows: {rendered['text']}")
    train, held_out, validation = sides
    held_out = held_out[: settings.evaluation.limit]
    counts = f"{len(train)} replies to train on, {len(held_out)} held out"
    print(f"{counts}, {len(validation)} to validate on" if validation else counts)
    return train, held_out, validation


def trainer_arguments(settings: SFTSettings, run: RunFolder) -> tuple[Any, dict[str, Any]]:
    """trl's SFTConfig, and all arguments that it was built with."""
    from trl import SFTConfig

    owned = {
        **owned_arguments(run, settings.run.name, settings.tracking.report_to),
        "max_length": settings.model.max_seq_length,
        "completion_only_loss": True,
        "padding_free": False,  # Unsloth would join rows on a GPU, and rows are what is divided
    }
    return build_arguments(SFTConfig, settings.training, owned, settings.run.verbose)


def build_trainer(
    model: Any, tokenizer: Any, rows: list[Demonstration], settings: SFTSettings, run: RunFolder
) -> tuple[Any, dict[str, Any]]:
    """trl's SFTTrainer, and the arguments that it or Unsloth changed.

    Rows are rendered text: trl then ends each reply with one EOS and scores nothing after it.
    """
    from datasets import Dataset
    from trl import SFTTrainer

    arguments, requested = trainer_arguments(settings, run)
    texts = [{"prompt": render(tokenizer, r.conversation), "completion": r.reply} for r in rows]
    with without_added_tokens(tokenizer):
        trainer = trainers.guarded_sft(SFTTrainer)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )
    return trainer, report_changes(requested, trainer.args)


if __name__ == "__main__":
    run_main(main)
