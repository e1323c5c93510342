"""Score any model on problems whose answer is a number: GSM8K, GSM8K-Platinum, MGSM, your own; and
on problems whose answer is text, by rewards of your own.

    ./run evaluate --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k
    ./run evaluate --model outputs/grpo_gsm8k_16gb/adapter --data mgsm-fr --language fr
    ./run evaluate --model outputs/grpo_gsm8k_16gb/gguf/grpo_gsm8k_16gb-q8_0.gguf --data gsm8k
    ./run evaluate --model http://127.0.0.1:8080 --data problems.jsonl --samples 8 --temperature 0.8
    ./run evaluate --model outputs/mine --data answers.jsonl --rewards my_rewards.py:same_words
    ./run evaluate --model Qwen/Qwen2.5-0.5B-Instruct --config configs/grpo_gsm8k_16gb.yaml \\
        --data train --examples examples.jsonl --samples 8 --limit 500    # for data.format: replies
    ./run evaluate --compare outputs/eval/a/report.json outputs/eval/b/report.json
    ./run evaluate --rescore outputs/eval/a/replies.jsonl

Zero-shot, greedy unless --temperature is given. An adapter of a run folder gets the system
prompt, worked examples and chat template variables that it was trained with, and one that was
trained on answers that are text is scored by the rewards of its training. Every reply is kept in
replies.jsonl as it comes, so an interrupted evaluation resumes, and scores can be recomputed
without the model.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval import gsm8k
from eval.rewarded import RewardedReply, Scorer, reward_row
from posttrain.base import flags
from posttrain.base.errors import DataError
from posttrain.base.files import fingerprint, write_json
from posttrain.base.lock import locked
from posttrain.base.paths import is_url, shown
from posttrain.base.process import run_main
from posttrain.data.text import check_examples
from posttrain.model.provenance import run_of
from posttrain.model.server import PATIENCE_S, Server
from posttrain.report import tables
from posttrain.run.replies import folder_for, read_replies, resume, score_again
from posttrain.scoring import evaluation, reward_functions
from posttrain.scoring.answers import (
    EvaluatedModel,
    adapter_of_run,
    answer_all,
    precision,
    weights_fingerprint,
)
from posttrain.settings import Evaluation, Model, Prompt
from posttrain.settings.secrets import check_arguments
from posttrain.settings.strict_yaml import parse_yaml


def main(argv: list[str] | None = None) -> int:
    """Score, score again or compare; returns the exit code."""
    args = parse(argv)
    if args.rescore:
        print(rescore(args.rescore))
    elif args.compare:
        print(compare_reports(*args.compare))
    else:
        evaluate(args)
    return 0


def evaluate(args: argparse.Namespace) -> None:
    """Answer the problems, score the replies and write the report."""
    args.model = adapter_of_run(args.model)
    config = evaluation.config_of(args.model, args.data, args.config)
    weights = evaluation.weights_of(args.rewards, args.data, config)
    text = weights is not None  # gold answers are text, and rewards score
    of_run = None if args.rewards or args.config else run_of(args.model)[0]
    functions = reward_functions.load(weights or (), "text", of_run)
    own = text and not args.rewards
    problems = evaluation.load_problems(args.data, config, args.limit, text, own)
    given = {name: getattr(args, name) for name in Prompt.model_fields}
    prompt = evaluation.prompt_of(config, args.language, text, **given)
    check_examples(prompt.examples, [problem.question for problem in problems])
    score: gsm8k.Score[Any] = Scorer(functions, weights, prompt) if weights else gsm8k.score_reply
    if weights:
        row = reward_row(problems[0], prompt)
        reward_functions.tried(functions, row, f"{problems[0].where}: ")
    allowed = args.allow_trained_on or args.data == "train"
    overlap = evaluation.refuse_trained_on(args.model, args.data, problems, allowed)
    options = {k: v for k, v in vars(args).items() if k in Evaluation.model_fields}
    how = precision(args.model, args.dtype, args.load_in_4bit)
    model = EvaluatedModel(
        args.model, Evaluation(**options), prompt, how, args.samples, args.seed, args.timeout
    )
    request = model.request(
        weights=weights_fingerprint(args.model),
        served=Server(args.model).model if is_url(args.model) else None,
        data=args.data,
        fingerprint=fingerprint(problems),
        rewards=weights,
        samples=args.samples,
        trained_on=overlap,
    )
    folder = args.output or folder_for(
        evaluation.default_folder(args.model, args.data, args.config), request
    )
    with locked(folder, "another evaluation is writing there"):
        done = resume(folder, request)
        if weights and done:
            with reward_functions.reward_errors():
                score_again(folder, done, problems, score)
        answer_all(model, problems, request, folder, done, score)
        measured = gsm8k.summarise(list(done.values()))
        measures = {name: asdict(measure) for name, measure in measured.items()}
        write_json(folder / "report.json", {**request, "measures": measures})
    print(f"\n{tables.summary_table(measured)}\n\nKept in {shown(folder)}")
    if overlap:
        print(f"warning: {overlap} of these questions were trained on")
    if "mgsm" in args.data.lower():
        print(gsm8k.MGSM_OVERLAP)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with options that belong together checked."""
    parser = flags.parser("evaluate", __doc__)
    add = parser.add_argument
    add("--model", help="hub name, folder of a model, run or adapter, GGUF file, URL of a server")
    data = f"{', '.join(evaluation.SETS)}, a file in GSM8K's form, or with --config: train, eval"
    add("--data", help=data)
    add(
        "--config",
        type=Path,
        metavar="YAML",
        help="a GRPO config: its prompt, and with --data train or eval its problems (without those "
        "of data.validation)",
    )
    languages = sorted(gsm8k.SYSTEM)
    add("--language", choices=languages, default="en", help="of the default system prompt")
    add("--system", help="system prompt instead ('' for none)")
    add(
        "--examples",
        type=lambda text: text or [],
        metavar="FILE",
        help="JSON lines of question and answer, before each question ('' for none; default: those "
        "of the config or of the model's run)",
    )
    add(
        "--rewards",
        nargs="+",
        default=(),
        metavar="REWARD[=WEIGHT]",
        help="answers are text, and these score the replies: file.py:function or "
        "package.module:function (default: those of the model's run, if it was trained on text)",
    )
    add(
        "--chat-template-kwargs",
        type=lambda text: parse_yaml(text, "--chat-template-kwargs"),
        metavar="YAML",
        help="variables of the chat template, such as '{enable_thinking: false}' (default: those "
        "that the model's run was trained with)",
    )
    add("--limit", type=flags.count, help="only the first problems")
    add("--samples", type=flags.count, default=1, help="replies a problem, for pass@k and majority")
    add("--temperature", type=flags.not_negative, help="default: 0 (greedy), 0.8 with --samples")
    add("--max-new-tokens", type=flags.count, default=640)
    add(
        "--batch-size",
        type=flags.count,
        help="default: what fits the memory; requests at the same time to a server (8) or a GGUF "
        "file (1: else replies vary a little)",
    )
    stop = "end a reply at its closing answer tag: faster, but hides what would come after it"
    add("--stop-at-answer", action="store_true", help=stop)
    add("--load-in-4bit", action="store_true", help="score with the base weights in 4-bit")
    add(
        "--dtype",
        choices=get_args(Model.model_fields["dtype"].annotation),
        help="compute type of the base weights (default: as the adapter's run was trained, else "
        "the best that the device has); only in float32 are replies the same at any batch size",
    )
    add("--timeout", type=flags.positive, default=PATIENCE_S, help="seconds to wait for a server")
    add("--seed", type=flags.seed, default=0)
    add("--output", type=Path, help="folder (default: outputs/eval/MODEL-DATA, -2 and so on)")
    add("--allow-trained-on", action="store_true", help="score questions that were trained on")
    compare = "paired comparison of two reports (report.json or its folder)"
    add("--compare", nargs=2, type=Path, metavar="REPORT", help=compare)
    add("--rescore", type=Path, metavar="REPLIES", help="score a replies.jsonl again")
    check_arguments(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    if not (args.rescore or args.compare) and not (args.model and args.data):
        parser.error("--model and --data are needed (or --compare, or --rescore)")
    if args.temperature is None:
        args.temperature = 0.8 if args.samples > 1 else 0.0
    if args.samples > 1 and args.temperature <= 0:
        parser.error("--samples above 1 needs a --temperature above 0: greedy replies are alike")
    return args


def rescore(path: Path) -> str:
    """The measures of a replies.jsonl, as a table."""
    replies = replies_of(path)
    if isinstance(replies[0], RewardedReply):
        raise DataError(
            f"{path}: rewards scored these replies, and may have read columns that are not kept "
            "there; give the command that wrote them again"
        )
    return tables.summary_table(gsm8k.summarise(replies))


def compare_reports(first: Path, second: Path) -> str:
    """The paired comparison of two reports on the same problems, as a table."""
    folders = [path if path.is_dir() else path.parent for path in (first, second)]
    for path, folder in zip((first, second), folders, strict=True):
        if not path.exists() or not (folder / "replies.jsonl").is_file():
            raise DataError(f"{path}: no such report (report.json, beside its replies.jsonl)")
    before, after = (replies_of(folder / "replies.jsonl") for folder in folders)
    try:
        comparison = gsm8k.compare_replies(before, after)
    except ValueError as error:
        raise DataError(f"{first} and {second}: {error}") from None
    return tables.as_text([tables.compared(comparison, folders[1].resolve().name)])


def replies_of(path: Path) -> list[gsm8k.Reply]:
    """The replies of an evaluation, at least one."""
    if not (replies := read_replies(path)):
        raise DataError(f"{path}: holds no replies")
    return replies


if __name__ == "__main__":
    run_main(main)
