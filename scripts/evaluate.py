"""Score any model on problems whose answer is a number: GSM8K, GSM8K-Platinum, MGSM, your own; and
on problems whose answer is text, by rewards of your own.

    ./run evaluate --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k
    ./run evaluate --model outputs/grpo_gsm8k_16gb/adapter --data mgsm-fr --language fr
    ./run evaluate --model outputs/grpo_gsm8k_16gb/gguf/grpo_gsm8k_16gb-q8_0.gguf --data gsm8k
    ./run evaluate --model http://127.0.0.1:8080 --data problems.jsonl --samples 8 --temperature 0.8
    ./run evaluate --model outputs/mine --data answers.jsonl --rewards my_rewards.py:same_words
    ./run evaluate --model Qwen/Qwen2.5-0.5B-Instruct --config configs/grpo_gsm8k_16gb.yaml \
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
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from eval.gsm8k import (
    MGSM_OVERLAP,
    SYSTEM,
    Problem,
    Score,
    compare_replies,
    score_reply,
    summarise,
)
from eval.rewarded import RewardedReply, Scorer, reward_row
from posttrain import report
from posttrain.base.disk import check_folder
from posttrain.base.errors import ConfigError, DataError
from posttrain.base.files import fingerprint, write_json
from posttrain.base.paths import ROOT, is_url, run_command, shown
from posttrain.base.process import run_main
from posttrain.data.examples import check_examples
from posttrain.data.problems import for_validation, load_evaluation, seen_in_training
from posttrain.data.problems import load_problems as load_both
from posttrain.model.server import PATIENCE_S, first_model
from posttrain.run.replies import folder_for, read_replies, resume, score_again
from posttrain.scoring import answers, reward_functions
from posttrain.scoring.provenance import (
    earlier_questions,
    run_config,
    run_of,
    trained_questions,
    weights_fingerprint,
)
from posttrain.settings import (
    Evaluation,
    GRPOSettings,
    Model,
    ProblemColumns,
    ProblemData,
    Prompt,
    Source,
)
from posttrain.settings.command import check_settings, load_settings
from posttrain.settings.secrets import check_arguments
from posttrain.settings.strict_yaml import parse_yaml

SETS = {
    "gsm8k": Source(path="openai/gsm8k", subset="main", split="test"),
    "gsm8k-platinum": Source(path="madrylab/gsm8k-platinum", subset="main", split="test"),
    "mgsm-en": Source(path="hf://datasets/juletxara/mgsm/mgsm_en.tsv"),
    "mgsm-fr": Source(path="hf://datasets/juletxara/mgsm/mgsm_fr.tsv"),
}
OWN = ("train", "eval")  # the problems of --config
DTYPES = get_args(Model.model_fields["dtype"].annotation)


def main(argv: list[str] | None = None) -> int:
    """Dispatch on what was asked; returns the exit code."""
    asked = parse(argv)
    if asked.rescore:
        replies = read_replies(asked.rescore)
        if not replies:
            raise DataError(f"{asked.rescore}: holds no replies")
        if isinstance(replies[0], RewardedReply):
            raise DataError(
                f"{asked.rescore}: rewards scored these replies, and may have read columns that "
                "are not kept there; give the command that wrote them again"
            )
        print(report.summary_table(summarise(replies)))
        return 0
    if asked.compare:
        print(compare_reports(*asked.compare))
        return 0
    asked.model = adapter_of_run(asked.model)
    config = config_of(asked)
    weights = asked_rewards(asked, config)
    of_run = None if asked.rewards or asked.config else run_of(asked.model)[0]
    functions = reward_functions.load(weights or (), "text", of_run)
    problems = load_problems(asked, config, by_rewards=weights is not None)
    prompt = prompt_of(asked, config, weights)
    check_examples(prompt.examples, [problem.question for problem in problems])
    score: Score[Any] = Scorer(functions, weights, prompt) if weights else score_reply
    if weights:
        row = reward_row(problems[0], prompt)
        reward_functions.tried(functions, row, f"{problems[0].where}: ")
    overlap = refuse_trained_on(asked, problems)
    loaded = answers.precision(asked.model, asked.dtype, asked.load_in_4bit)
    request = {
        "model": asked.model,
        "weights": weights_fingerprint(asked.model),
        "served": first_model(asked.model) if is_url(asked.model) else None,
        **loaded,
        "data": asked.data,
        "fingerprint": fingerprint(problems),
        "system": prompt.system,
        "examples": [each.model_dump() for each in prompt.examples] or None,
        "rewards": weights,
        "chat_template_kwargs": prompt.chat_template_kwargs or None,  # as in earlier requests
        "samples": asked.samples,
        "temperature": asked.temperature,
        "max_new_tokens": asked.max_new_tokens,
        "stop_at_answer": asked.stop_at_answer,
        "seed": asked.seed,
        "trained_on": overlap,
    }
    folder = asked.output or folder_for(default_folder(asked), request)
    check_folder(folder)
    done = resume(folder, request)
    if weights and done:
        with reward_functions.reward_errors():
            score_again(folder, done, problems, score)
    answers.answer_all(asking_of(asked, prompt, loaded), problems, request, folder, done, score)
    found = summarise(list(done.values()))
    measures = {name: asdict(measure) for name, measure in found.items()}
    write_json(folder / "report.json", {**request, "measures": measures})
    print(f"\n{report.summary_table(found)}\n\nKept in {shown(folder)}")
    if overlap:
        print(f"warning: {overlap} of these questions were trained on")
    if "mgsm" in asked.data.lower():
        print(MGSM_OVERLAP)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what belongs together checked."""
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        help="hub name, folder of a model, run or adapter, GGUF file (run by llama.cpp), or URL of "
        "an OpenAI-style server",
    )
    add("--data", help=f"{', '.join(SETS)}, a file in GSM8K's form, or with --config: train, eval")
    add(
        "--config",
        type=Path,
        metavar="YAML",
        help="a GRPO config: its prompt, and with --data train or eval its problems, without those "
        "that it sets aside to validate on",
    )
    add("--language", choices=sorted(SYSTEM), default="en", help="of the default system prompt")
    add("--system", help="system prompt instead ('' for none)")
    add(
        "--examples",
        metavar="FILE",
        help="worked examples before each question, JSON lines of question and answer ('' for "
        "none; default: those of the config or of the model's run)",
    )
    add(
        "--rewards",
        nargs="+",
        metavar="REWARD[=WEIGHT]",
        help="answers are text, and these score the replies: file.py:function or "
        "package.module:function (default: those of the model's run, if it was trained on text)",
    )
    add(
        "--chat-template-kwargs",
        type=template_variables,
        metavar="YAML",
        help="variables of the chat template, such as '{enable_thinking: false}' (default: those "
        "that the model's run was trained with)",
    )
    add("--limit", type=int, help="only the first problems")
    add("--samples", type=int, default=1, help="replies a problem, for pass@k and majority vote")
    add("--temperature", type=float, help="0 (greedy) by default, 0.8 with --samples")
    add("--max-new-tokens", type=int, default=640)
    add(
        "--batch-size",
        type=int,
        help="default: found from the memory there is; "
        "requests at the same time to a server (8) or a GGUF file (1: else replies vary a little)",
    )
    add(
        "--stop-at-answer",
        action="store_true",
        help="end a reply at its closing answer tag; "
        "faster, but hides text that the model would have written after it",
    )
    add("--load-in-4bit", action="store_true", help="score with the base weights in 4-bit")
    add(
        "--dtype",
        choices=DTYPES,
        help="compute type of the base weights (default: as the adapter's run was trained, else "
        "the best that the device has); only in float32 are replies the same at any batch size",
    )
    add("--timeout", type=float, default=PATIENCE_S, help="seconds to wait for a server's answer")
    add("--seed", type=int, default=0)
    add(
        "--output",
        type=Path,
        help="folder (default: outputs/eval/MODEL-DATA, with a number for other settings)",
    )
    add("--allow-trained-on", action="store_true", help="score questions that were trained on")
    add(
        "--compare",
        nargs=2,
        type=Path,
        metavar="REPORT",
        help="paired comparison of two reports (report.json or its folder)",
    )
    add("--rescore", type=Path, metavar="REPLIES", help="score a replies.jsonl again")
    check_arguments(sys.argv[1:] if argv is None else argv)
    asked = parser.parse_args(argv)
    if not (asked.rescore or asked.compare) and not (asked.model and asked.data):
        parser.error("--model and --data are needed (or --compare, or --rescore)")
    for name in ("limit", "samples", "max_new_tokens", "batch_size"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not asked.timeout > 0:
        parser.error(f"--timeout must be above 0, got {asked.timeout}")
    if asked.temperature is not None and not 0 <= asked.temperature < float("inf"):
        parser.error(f"--temperature must be 0 or more, got {asked.temperature}")
    if asked.temperature is None:
        asked.temperature = 0.8 if asked.samples > 1 else 0.0
    if asked.samples > 1 and asked.temperature <= 0:
        parser.error(
            "--samples above 1 needs a --temperature above 0; greedy replies are all alike"
        )
    return asked


def template_variables(text: str) -> dict[str, Any]:
    """The value of --chat-template-kwargs, checked as prompt.chat_template_kwargs is.

    Raises:
        ConfigError: it is no mapping of names to values.
    """
    where = "--chat-template-kwargs"
    values = {"chat_template_kwargs": parse_yaml(text, where)}
    return check_settings(Prompt, values, where).chat_template_kwargs


def adapter_of_run(model: str) -> str:
    """The adapter's folder, where the model named is a run folder that has one."""
    for folder in (Path(model).expanduser(), ROOT / model):
        if (folder / "adapter" / "adapter_config.json").is_file():
            return str(folder / "adapter")
    return model


def config_of(asked: argparse.Namespace) -> dict[str, Any]:
    """The settings of --config, else of the model's run; empty without either.

    Raises:
        ConfigError: --config is not a config of GRPO, or is missing for --data train.
    """
    if asked.config is None:
        if asked.data in OWN:
            raise ConfigError(
                f"--data {asked.data}: name the config whose problems these are with --config"
            )
        return run_config(asked.model)
    return load_settings(GRPOSettings, asked.config).model_dump(mode="json")


def asked_rewards(asked: argparse.Namespace, config: dict[str, Any]) -> dict[str, float] | None:
    """The rewards to score by and their weights: those of --rewards, else of a config with answers
    that are text. None where answers are numbers, as in the sets that have a name.

    Raises:
        ConfigError: a weight is no number.
    """
    if asked.rewards:
        return dict(map(reward_functions.weighted, asked.rewards))
    if asked.data in SETS or config.get("data", {}).get("answers") != "text":
        return None
    weights: dict[str, float] = config["rewards"]
    return weights


def load_problems(
    asked: argparse.Namespace, config: dict[str, Any], by_rewards: bool = False
) -> list[Problem]:
    """The problems to score. A run's own, and those that its rewards score, have its columns."""
    if asked.data in OWN:
        own = ProblemData.model_validate(config["data"])
        train, held_out = load_both(own)
        problems = for_validation(train, own)[0] if asked.data == "train" else held_out
        return problems[: asked.limit]
    source = SETS.get(asked.data, Source(path=asked.data, split="test"))
    source = source.model_copy(update={"limit": asked.limit})
    data = config.get("data") or {}
    is_own = config.get("method") == "grpo" and _same_file(asked.data, data["eval"]["path"])
    columns = data["columns"] if is_own or (by_rewards and not asked.rewards) else {}
    wanted = ProblemColumns.model_validate(columns)
    return load_evaluation(source, wanted, "text" if by_rewards else "number")


def _same_file(given: str, path: str) -> bool:
    """Whether two paths, from here or from the project, are of one file."""
    found = [{p.resolve() for p in (Path(n), ROOT / n) if p.is_file()} for n in (given, path)]
    return bool(found[0] & found[1])


def prompt_of(
    asked: argparse.Namespace, config: dict[str, Any], weights: dict[str, float] | None
) -> Prompt:
    """The prompt that an SFT or GRPO run or a config trains with, else the standard one of
    --language, and none by rewards, as it asks for a number; with what the command line sets."""
    values = dict(config.get("prompt") or {})
    if config.get("method") not in ("sft", "grpo"):
        values |= {"system": None if weights else SYSTEM[asked.language], "examples": []}
    if asked.system is not None:
        values["system"] = asked.system or None
    if asked.examples is not None:
        values["examples"] = asked.examples or []
    if asked.chat_template_kwargs is not None:
        values["chat_template_kwargs"] = asked.chat_template_kwargs
    where = "--examples" if asked.examples else f"the config of {asked.config or asked.model}"
    return check_settings(Prompt, values, where)


def refuse_trained_on(asked: argparse.Namespace, problems: list[Problem]) -> int:
    """How many of the problems the model's run, or a stage before it, trained on.

    Raises:
        DataError: some are, and --allow-trained-on was not given.
    """
    trained = run_config(asked.model)
    if not trained:
        return 0
    before = [q for _, turns in earlier_questions(trained["model"].get("adapter")) for q in turns]
    shared = seen_in_training(problems, [*trained_questions(trained), *before])
    if shared and not asked.allow_trained_on and asked.data != "train":
        raise DataError(
            f"{asked.data}: {len(shared)} of {len(problems)} questions are in "
            f"{trained['data']['train']['path']}{' or the data of earlier stages' * bool(before)},"
            f" which {asked.model} was trained on, such as "
            f"{shared[0].question[:60]!r}. --allow-trained-on scores them and says so in the report"
        )
    return len(shared)


def default_folder(asked: argparse.Namespace) -> Path:
    """outputs/eval/MODEL-DATA, with what a file name cannot hold replaced.

    MODEL is a folder's name after that of the folder around it, or a GGUF file's after its run's.
    """
    model = str(Path(asked.model).absolute()) if Path(asked.model).exists() else asked.model
    parts = model.rstrip("/").removesuffix(".gguf").split("/")
    *around, last = [part for part in parts if part != "gguf"][-2:]
    named = [last] if last.startswith(f"{''.join(around)}-") else [*around, last]
    data = f"{asked.config.stem}-{asked.data}" if asked.data in OWN else Path(asked.data).stem
    name = f"{'-'.join(named)}-{data}"
    return ROOT / "outputs" / "eval" / re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")


def asking_of(asked: argparse.Namespace, prompt: Prompt, loaded: dict[str, Any]) -> answers.Asking:
    """How replies are generated, by a model whose weights are loaded as `loaded` says."""
    evaluation = Evaluation(
        batch_size=asked.batch_size,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        stop_at_answer=asked.stop_at_answer,
    )
    return answers.Asking(
        model=asked.model,
        evaluation=evaluation,
        prompt=prompt,
        variables=prompt.chat_template_kwargs,
        precision=loaded,
        samples=asked.samples,
        seed=asked.seed,
        patience_s=asked.timeout,
    )


def compare_reports(first: Path, second: Path) -> str:
    """The paired comparison of two reports on the same problems, as a table."""
    folders = []
    for path in (first, second):
        folders.append(path if path.is_dir() else path.parent)
        if not path.exists() or not (folders[-1] / "replies.jsonl").is_file():
            raise DataError(f"{path}: no such report (report.json, beside its replies.jsonl)")
    replies = [read_replies(folder / "replies.jsonl") for folder in folders]
    for folder, kept in zip(folders, replies, strict=True):
        if not kept:
            raise DataError(f"{folder}: holds no replies")
    try:
        comparison = compare_replies(*replies)
    except ValueError as error:
        raise DataError(f"{first} and {second}: {error}") from None
    return report.table([(folders[1].resolve().name, comparison)])


if __name__ == "__main__":
    run_main(main)
