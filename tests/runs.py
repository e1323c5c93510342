"""Run folders as the scripts leave them, made in a moment: what writes them is the real thing."""

import json
import math
import random
from pathlib import Path
from typing import Any

from eval import Completion
from eval.gsm8k import Problem, compare_replies, score_reply
from eval.measures import compare
from eval.preference import Pair, ScoredPair, as_row
from eval.preference import scores as pair_scores
from eval.replies import measure
from eval.replies import scores as reply_scores
from eval.rewarded import Scorer
from posttrain.base.files import append_rows
from posttrain.run.folder import RunFolder
from posttrain.run.results import PromptReply
from posttrain.scoring import demonstrations
from tests.helpers import demo_settings, read

FACTS = {"device": "CPU", "data": "0123456789abcdef" * 4}
CHANGED = {"optim": {"asked": "adamw_8bit", "used": "adamw_torch"}}


def opened(path: Path, settings: Any, steps: int, seconds: float, **facts: Any) -> RunFolder:
    """The folder of a run that has trained, each step for so many seconds."""
    run = RunFolder(path)
    run.open(fresh=False)
    trained = {"steps": steps, "seconds": seconds * steps}
    run.describe(settings, {**FACTS, **facts, "trained": trained})
    return run


def grpo_run(
    path: Path, steps: int = 40, questions: int = 60, gain: float = 0.6, hostile: str = ""
) -> Path:
    """A finished GRPO run: about a fifth right before, `gain` more after; `hostile` is in texts."""
    chance = random.Random(0)
    run = opened(path, demo_settings("grpo"), steps, 2.5, changed_arguments=CHANGED)
    for step in range(1, steps + 1):
        append_rows(run.metrics, [grpo_metrics(step, steps, chance)])
        sample = {
            "step": step,
            "question": f"{hostile}What is {step} + 1?",
            "answer": str(step + 1),
            "completion": f"{hostile}{step} + 1 = {step + 1}.\n<answer>{step + 1}</answer>",
            "tokens": 12,
            "reward/format": 1.0,
            "reward/correctness": 2.0,
        }
        append_rows(run.samples, [sample])
    sides = []
    for side, share in (("before", 0.2), ("after", 0.2 + gain)):
        replies = []
        for i in range(questions):
            output = i + 1 if chance.random() < share else i + 2
            text = f"{hostile}{i} + 1 = {output}.\n<answer>{output}</answer>"
            problem = Problem(f"{hostile}What is {i} + 1?", str(i + 1))
            replies.append(score_reply(problem, Completion(text, 15, False)))
        run.write_rows(side, [reply.as_row() for reply in replies])
        sides.append(replies)
    run.write_comparison(compare_replies(*sides))
    return path


def text_run(path: Path, steps: int = 2, questions: int = 60) -> Path:
    """A finished GRPO run on answers that are text: two rewards of one's own, both higher after;
    one of them can score no reply to the last question."""
    rewards = {"my_rewards.py:same": 1.0, "my_rewards.py:brief_rate": 0.5}
    settings = demo_settings("grpo", "data.answers=text", f"rewards={json.dumps(rewards)}")
    run = opened(path, settings, steps, 2.5, changed_arguments={})
    rows = [{"step": n, "seconds": 2.5 * n, "reward": 0.1 * n} for n in range(1, steps + 1)]
    append_rows(run.metrics, rows)

    def same(completions: Any, answer: Any, **columns: Any) -> list[float | None]:
        pairs = zip(completions, answer, strict=True)
        return [None if gold == "last" else float(c[-1]["content"] == gold) for c, gold in pairs]

    def brief_rate(completions: Any, **columns: Any) -> list[float | None]:
        return [3.0 if len(c[-1]["content"]) < 12 else -1.0 for c in completions]

    functions = dict(zip(rewards, (same, brief_rate), strict=True))
    score = Scorer(functions, rewards, settings.prompt)
    sides = []
    for side, right in (("before", 5), ("after", 2)):
        replies = []
        for i in range(questions):
            gold = "last" if i == questions - 1 else f"word {i}"
            text = "a long and wrong reply" if i % right else gold
            replies.append(score(Problem(f"Which word is {i}?", gold), Completion(text, 4, False)))
        run.write_rows(side, [reply.as_row() for reply in replies])
        sides.append(replies)
    run.write_comparison(compare_replies(*sides))
    return path


def grpo_metrics(step: int, steps: int, chance: random.Random) -> dict[str, Any]:
    """A row of metrics.jsonl."""
    learned = 1 - math.exp(-4 * step / steps)
    right, formatted = 2 * learned + chance.gauss(0, 0.1), 0.7 + 0.3 * learned
    return {
        "step": step,
        "seconds": 2.5 * step,
        "reward": right + formatted,
        "rewards/correctness/mean": right,
        "rewards/format/mean": formatted,
        "rewards/correctness/zero_spread": learned,
        "rewards/format/zero_spread": learned,
        "frac_reward_zero_std": learned,
        "completions/mean_length": 20 + 8 * learned,
        "completions/min_length": 12.0,
        "completions/max_length": 35.0,
        "completions/clipped_ratio": 0.0,
        "num_tokens": 12_000.0 * step,
        "epoch": step / 100,
    }


def dpo_run(path: Path, steps: int = 60, pairs: int = 40) -> Path:
    """A finished DPO run: half of the replies in French before, all after; more problems than
    pairs, scored beside them, that no training changed."""
    chance = random.Random(0)
    run = opened(path, demo_settings("dpo"), steps, 0.3)
    for step in range(1, steps + 1):
        margin = step / steps + chance.gauss(0, 0.05)
        row = {
            "step": step,
            "seconds": 0.3 * step,
            "loss": math.log(1 + math.exp(-margin)),
            "rewards/margins": margin,
            "rewards/chosen": 0.0,
            "rewards/rejected": -margin,
            "rewards/accuracies": min(1.0, step / 10),
        }
        append_rows(run.metrics, [row])
    sides = []
    for side, margin in (("before", 0.0), ("after", 1.0)):
        scored = [ScoredPair(margin + 0.01 * i * (margin > 0), 0.0, 12, 9) for i in range(pairs)]
        texts = [
            "Oui, bien sûr, avec plaisir." if side == "after" or i % 2 == 0 else "Yes, of course."
            for i in range(pairs)
        ]
        replies = measure([Completion(t, 10 + i % 7, False) for i, t in enumerate(texts)])
        questions = [f"Question {i} ?" for i in range(pairs)]
        held_out = [Pair(({"role": "user", "content": q},), "Oui.", "Yes.") for q in questions]
        run.write_rows(side, [as_row(p, s) for p, s in zip(held_out, scored, strict=True)])
        rows = [
            PromptReply(side, None, [], question, **vars(reply))
            for question, reply in zip(questions, replies, strict=True)
        ]
        run.write_rows(f"{side}_replies", map(vars, rows))
        sides.append({**pair_scores(scored), **reply_scores(replies)})
    problems = [Problem(f"What is {i} + 1?", str(i + 1)) for i in range(pairs + 20)]
    unchanged = [score_reply(p, Completion("<answer>2</answer>", 5, False)) for p in problems]
    beside = compare_replies(unchanged, unchanged)
    run.write_comparison(
        {**compare(*sides), **{f"arithmetic/{name}": result for name, result in beside.items()}}
    )
    (path / "data").mkdir()
    report = {
        "rows": {"read": 812, "kept": 800, "train": 760, "held_out": 40, "dropped": {"empty": 12}},
        "warnings": [{"about": "few pairs", "seen": 1, "threshold": 2, "text": "only a few pairs"}],
    }
    write(path / "data" / "report.json", report)
    return path


def sft_run(path: Path, steps: int = 20, problems: int = 40, loss: float = 0.3) -> Path:
    """A finished SFT run: held-out replies at a loss of 1.2 before and about `loss` after; of its
    problems, where it has any, a fifth right before and most after."""
    given = () if problems else ("data.problems=null",)
    run = opened(path, demo_settings("sft", *given), steps, 1.5)
    for step in range(1, steps + 1):
        row = {"step": step, "seconds": 1.5 * step, "loss": loss + 0.9 / step, "entropy": 0.4}
        append_rows(run.metrics, [{**row, "mean_token_accuracy": 1 - 0.5 / step}])
    sides = []
    for side, own, right in (("before", 1.2, 0.2), ("after", loss, 0.9)):
        losses = [own + 0.01 * (i % 5) for i in range(20)]
        rows = [{"reply": f"It is {i}.", "reply_loss": each} for i, each in enumerate(losses)]
        replies = [
            score_reply(
                Problem(f"What is {i} + 1?", str(i + 1)),
                Completion(f"<answer>{i + (1 if i < right * problems else 2)}</answer>", 9, False),
            )
            for i in range(problems)
        ]
        run.write_rows(f"{side}_losses", rows)
        run.write_rows(side, [reply.as_row() for reply in replies])
        sides.append(demonstrations.Scores(losses, replies))
    run.write_comparison(compare(*(side.measures() for side in sides)))
    return path


def unfinished(path: Path, steps: int) -> Path:
    """Make a finished run one that has trained `steps` steps, the last line half written."""
    for name in ("eval/before.json", "eval/after.json", "eval/comparison.json", "eval/after.jsonl"):
        (path / name).unlink()
    lines = (path / "metrics.jsonl").read_text("utf-8").splitlines()
    (path / "metrics.jsonl").write_text("\n".join([*lines[:steps], lines[steps][:20]]), "utf-8")
    environment = read(path / "environment.json")
    del environment["trained"]
    write(path / "environment.json", environment)
    return path


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
