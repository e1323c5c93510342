"""Score exported files on the held-out rows of their run, paired with the adapter's own answers.

    python -m posttrain.export.score RUN BASE TARGET...

In another process: files are proven without Unsloth, and scored with it, as the adapter was and as
scripts/evaluate.py does. Every answer is kept in RUN/eval/exports/TARGET as it comes. Results go
into export.json:

    {"exports": {TARGET: {..., "score": {
        "main", "n", "right", "gained", "lost", "p_value", "tokens_per_second",
        "measures": {name: {"value", "n", "low", "high"}},
        "against_adapter": {name: {"difference", "low", "high", "p_value", "n"}}}}},
     "adapter_16bit": {"score": {...}}}

`right` are the rows that the adapter gets right by the `main` measure, `gained` and `lost` those on
which the file does better and worse. `adapter_16bit` is the adapter of a 4-bit policy on the 16-bit
base weights, of which exports are made.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.gsm8k import (
    Problem,
    Reply,
    Score,
    compare_replies,
    completion_of,
    score_reply,
    summarise,
)
from eval.measures import TOTAL
from eval.rewarded import Scorer
from posttrain.base.errors import ConfigError, DataError
from posttrain.base.files import fingerprint, model_fingerprint, write_json, write_text
from posttrain.base.lock import hold
from posttrain.base.paths import ROOT
from posttrain.base.process import run_main, share_the_processor
from posttrain.data.problems import load_evaluation, load_scored_problems
from posttrain.export.score_replies import ReplyScorer
from posttrain.report import export_scores
from posttrain.run.reading import read_run
from posttrain.run.replies import check_request, read_replies, resume, score_again
from posttrain.run.results import paired
from posttrain.run.room import MERGED, in_order
from posttrain.scoring import reward_functions
from posttrain.scoring.answers import Asking, answer_all
from posttrain.scoring.provenance import weights_fingerprint
from posttrain.settings import (
    DPOSettings,
    Evaluation,
    Export,
    GRPOSettings,
    SFTSettings,
)
from posttrain.settings.command import SETTINGS, check_settings
from posttrain.settings.strict_yaml import read_yaml

ADAPTER_16BIT = "adapter_16bit"
Found = dict[str, Any]


def check(run: Path) -> None:
    """Check that there are answers of the adapter to compare with.

    Raises:
        ConfigError: there are none.
    """
    answered = "eval/after.jsonl"
    needed = ("config.yaml", answered, "eval/comparison.json")
    if missing := next((path for path in needed if not (run / path).is_file()), None):
        raise ConfigError(
            f"--score (export.score): {run} is no finished run folder: there is no {missing}, and "
            f"files are compared with the answers that the finished adapter gave ({answered})"
        )
    config = read_yaml(run / "config.yaml")
    if config.get("method") == "dpo" and not config["evaluation"]["replies"]:
        raise ConfigError(
            f"--score (export.score): {run} was trained with evaluation.replies=0, so there are no "
            "replies of its adapter to compare files with"
        )
    if config.get("method") == "sft" and not config["data"].get("problems"):
        raise ConfigError(
            f"--score (export.score): {run} was trained without data.problems, so there are no "
            "answers of its adapter to compare files with; leave it out, or score a file with "
            "./run evaluate"
        )


def in_a_process(run: Path, base: Path, settings: Export) -> int:
    """Score what `settings.to` names and was made; returns the exit code."""
    targets = [t for t in in_order(settings.to) if t != "ollama"]  # it runs the GGUF file
    if MERGED not in settings.to:
        targets.remove(MERGED)
    command = [sys.executable, "-m", "posttrain.export.score", str(run), str(base), *targets]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    print("\nScoring what was made on the held-out rows", flush=True)
    code = subprocess.run(
        command, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
    ).returncode
    return code if code >= 0 else 128 - code


def main() -> int:
    """Score every target that is there; returns the exit code."""
    run, base, targets = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    share_the_processor()
    lease = hold(run / ".export.lock", run, "another export is writing there")
    config = read_yaml(run / "config.yaml")
    record = json.loads((run / "export.json").read_text(encoding="utf-8"))
    trained = record["exports"]
    made = [t for t in targets if t in trained and (run / trained[t]["path"]).exists()]
    entries = {target: trained[target] for target in made}
    method = config.get("method", "grpo")
    settings: Any = check_settings(SETTINGS[method], config, str(run / "config.yaml"))
    if settings.model.load_in_4bit:
        entries = {ADAPTER_16BIT: record.setdefault(ADAPTER_16BIT, {}), **entries}
    for name, entry in entries.items():
        print(f"\n{name}", flush=True)
        speed, found = score_file(_file(run, base, name, entry, settings), settings)
        kept = entry.get("score", {}).get("tokens_per_second")
        entry["score"] = found | {"tokens_per_second": kept if speed is None else round(speed, 1)}
        write_json(run / "export.json", record)
    lease.release()
    print(f"\n{export_scores.text(read_run(run))}")
    return 0


@dataclass(frozen=True)
class File:
    """What is scored, and where its answers are kept."""

    run: Path
    asking: Asking
    weights: str | None
    """Fingerprint of the weights."""
    folder: Path

    def request(self, **more: Any) -> Found:
        """What the answers in the folder depend on. The run's own folder may move. Answers to
        another request, such as those of a file that was made again, are removed."""
        evaluation = self.asking.evaluation
        request = {
            "model": os.path.relpath(self.asking.model, self.run),
            "weights": self.weights,
            **self.asking.precision,
            "chat_template_kwargs": dict(self.asking.variables) or None,
            "temperature": evaluation.temperature,
            "max_new_tokens": evaluation.max_new_tokens,
            "stop_at_answer": evaluation.stop_at_answer,
            "seed": self.asking.seed,
            **more,
        }
        try:
            check_request(self.folder, request)
        except ConfigError:
            print("  the answers kept were to another request; answering again")
            old = self.folder.with_name(f".{self.folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)  # at once: answers are never without their request
            shutil.rmtree(old)
        return request


def _file(run: Path, base: Path, name: str, entry: Found, settings: Any) -> File:
    on_base = name == ADAPTER_16BIT
    path = run / ("adapter" if on_base else entry["path"])
    load_in = {"dtype": settings.model.dtype if on_base else "auto", "load_in_4bit": False}
    if path.suffix == ".gguf":
        load_in = dict.fromkeys(load_in)
    asking = Asking(
        model=str(path),
        evaluation=Evaluation(
            max_new_tokens=settings.evaluation.max_new_tokens,
            temperature=settings.evaluation.temperature,
            stop_at_answer=settings.evaluation.stop_at_answer,
        ),
        prompt=settings.prompt,
        variables=settings.prompt.chat_template_kwargs,
        precision=load_in,
        seed=settings.training.seed,
        base=str(base) if on_base else None,
    )
    weights = weights_fingerprint(str(path))
    if on_base:
        weights = f"{weights} on {model_fingerprint(base)}"
    return File(run, asking, weights, run / "eval" / "exports" / name.replace(":", "-"))


def score_file(file: File, settings: Any) -> tuple[float | None, Found]:
    """Tokens a second of the answers that were still missing, if any were, and the score."""
    if not isinstance(settings, DPOSettings):
        return _score_problems(file, settings)
    scorer = ReplyScorer(file.run, settings)
    request = file.request(fingerprint=scorer.fingerprint)
    return scorer.score(file.asking, request, file.folder)


def _score_problems(file: File, settings: SFTSettings | GRPOSettings) -> tuple[float | None, Found]:
    adapter = read_replies(file.run / "eval" / "after.jsonl")
    problems = held_out(settings, adapter)
    asked = {problem.question: problem for problem in problems}
    by: Score[Any] = score_reply
    weights = None
    if isinstance(settings, GRPOSettings) and settings.data.answers == "text":
        weights = settings.rewards
        functions = reward_functions.load(weights, "text", file.run)
        by = Scorer(functions, weights, settings.prompt)
    request = file.request(
        fingerprint=fingerprint(problems),
        system=settings.prompt.system,
        examples=[each.model_dump() for each in settings.prompt.examples] or None,
        rewards=weights,
    )
    done = resume(file.folder, request)
    if weights is not None:  # the rewards may have changed since: both sides by those of now
        with reward_functions.reward_errors():
            if done:
                score_again(file.folder, done, problems, by)
            kept = adapter
            adapter = [by(asked[r.question], completion_of(r.as_row()), 0) for r in kept]
        if adapter != kept:
            print("  the rewards changed since the run: its answers are scored again, here alone")
    speed = answer_all(file.asking, problems, request, file.folder, done, by)
    replies: list[Reply] = [done[problem.question, 0] for problem in problems]
    if speed is not None:  # a server's answers come in any order
        lines = [json.dumps(reply.as_row(), ensure_ascii=False) + "\n" for reply in replies]
        write_text(file.folder / "replies.jsonl", "".join(lines))
    main = "strict" if weights is None else TOTAL
    scores = [{r.question: r.scores()[main] for r in side} for side in (adapter, replies)]
    pairs = [(scores[0][p.question], scores[1][p.question]) for p in problems]
    return speed, paired(main, pairs, summarise(replies), compare_replies(adapter, replies))


def held_out(settings: SFTSettings | GRPOSettings, answered: Sequence[Reply]) -> list[Problem]:
    """The problems that the adapter answered, in the order of the data.

    Raises:
        DataError: some are not in the data any more.
    """
    questions = {reply.question for reply in answered}
    if isinstance(settings, GRPOSettings):
        path = settings.data.eval.path
        problems = load_evaluation(settings.data.eval, settings.data.columns, settings.data.answers)
    else:
        path = settings.data.problems.path if settings.data.problems else "data.problems"
        problems = load_scored_problems(settings.data.problems, ())
    asked = [problem for problem in problems if problem.question in questions]
    if len(asked) < len(questions):
        raise DataError(
            f"{path}: {len(questions) - len(asked)} of the {len(questions)} questions that "
            "the adapter answered are not there any more; files cannot be compared with it"
        )
    return asked


if __name__ == "__main__":
    run_main(main)
