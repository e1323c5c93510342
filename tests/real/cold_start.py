"""The cold start of docs/stages.md on Qwen2.5-Coder-0.5B-Instruct: sample, SFT, GRPO, on any CPU.

    ./run python -m tests.real.cold_start FOLDER

Makes data and configs in FOLDER, runs the commands there (each resumes where it was stopped) and
writes what they measured to FOLDER/cold_start.json. With one thread on a machine that does nothing
else it takes about two hours and 10 GB of memory. The problems are easy ones: of GSM8K's questions
of at most 220 characters with at most two steps, 600 to train on and 200 to score, drawn with seed
0. Scores allow 256 tokens a reply, so that the untrained model's long replies are not cut short.
"""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from eval.gsm8k import compare_replies, rescore
from tests.helpers import ROOT, SHARED, read, rows, write_rows
from tests.real import weights

EXAMPLE = {
    "question": "A baker makes 4 trays of 15 rolls and sells 38 of them. How many rolls are left?",
    "answer": "The baker makes 4 * 15 = 60 rolls.\n"
    "After selling 38, there are 60 - 38 = 22 rolls left.\n<answer>22</answer>",
}
SYSTEM = (
    "Solve the problem step by step. End with the number alone on the last line as "
    "<answer>NUMBER</answer>."
)
TRAINING = {
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "save_steps": 1,
}
SCORING = {"batch_size": 100, "max_new_tokens": 256, "limit": 200}
MODEL = {"max_seq_length": 640, "load_in_4bit": False, "dtype": "bfloat16"}


def write_data(folder: Path) -> None:
    """Easy problems of GSM8K to train on and to score, and the worked example."""
    for name, count in (("train", 600), ("test", 200)):
        problems = rows(SHARED / "gsm8k" / f"{name}.jsonl")
        easy = [p for p in problems if p["answer"].count("<<") <= 2 and len(p["question"]) <= 220]
        random.Random(0).shuffle(easy)
        write_rows(folder / f"{name}.jsonl", *easy[:count])
    write_rows(folder / "examples.jsonl", EXAMPLE)


def configs(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    """The configs of the two training runs."""
    train, test = str(folder / "train.jsonl"), str(folder / "test.jsonl")
    return {
        "sft": {
            "method": "sft",
            "model": {"name": model, **MODEL},
            "lora": {"r": 16, "alpha": 32},
            "data": {
                "train": {"path": str(folder / "sampled")},
                "format": "replies",
                "keep": {"reward": 3.0, "per_question": 2},
                "holdout": 4,
                "problems": {"path": test},
            },
            "prompt": {"system": SYSTEM},
            "training": {
                **TRAINING,
                "num_train_epochs": 3,
                "per_device_train_batch_size": 8,
                "learning_rate": 2e-4,
            },
            "evaluation": SCORING,
            "run": {"name": "real_sft", "threads": 1},
        },
        "grpo": {
            "method": "grpo",
            "model": {"adapter": str(folder / "real_sft"), **MODEL},
            "data": {"train": {"path": train}, "eval": {"path": test}, "overlong": "drop"},
            "prompt": {"system": SYSTEM},
            "training": {
                **TRAINING,
                "max_steps": 12,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 4,
                "num_generations": 8,
                "max_completion_length": 128,
                "learning_rate": 1e-4,
            },
            "evaluation": SCORING,
            "run": {"name": "real_grpo", "threads": 1},
        },
    }


def commands(folder: Path, model: str) -> list[list[str]]:
    """Sample 480 replies with one worked example, train on those that earned 3, then GRPO."""
    sample = "evaluate --data train --samples 4 --temperature 1 --limit 120 --max-new-tokens 128"
    return [
        [
            *sample.split(),
            *("--dtype", "bfloat16", "--batch-size", "120", "--model", model),
            *("--config", str(folder / "grpo_base.yaml"), "--output", str(folder / "sampled")),
            *("--examples", str(folder / "examples.jsonl")),
        ],
        ["sft", "--config", str(folder / "sft.yaml"), "--output", str(folder / "real_sft")],
        ["grpo", "--config", str(folder / "grpo.yaml"), "--output", str(folder / "real_grpo")],
    ]


def results(folder: Path) -> dict[str, Any]:
    """What the runs in the folder measured."""
    sampled = rows(folder / "sampled/replies.jsonl")
    run = folder / "real_sft"
    sides = {side: read(run / f"eval/{side}.json") for side in ("before", "after")}
    change = read(run / "eval/comparison.json")
    steps = rows(folder / "real_grpo/metrics.jsonl")
    right = Counter(row["question"] for row in sampled if row["total_reward"] == 3)
    names = ("strict", "lenient", "format_rate", "truncated_rate", "reply_loss")
    base, tuned = (
        [rescore(row) for row in rows(path)]
        for path in (run / "eval/before.jsonl", folder / "real_grpo/eval/after.jsonl")
    )
    return {
        "sampled": {
            "replies": len(sampled),
            "questions": len({row["question"] for row in sampled}),
            "right_in_form": right.total(),
            "kept": sum(min(2, count) for count in right.values()),
            "format_rate": sum(row["format_rate"] for row in sampled) / len(sampled),
        },
        "sft": {
            name: {**{side: sides[side][name] for side in sides}, "change": change[name]}
            for name in names
        },
        "grpo": [
            {
                key: row[key]
                for key in ("step", "reward", "frac_reward_zero_std", "completions/mean_length")
            }
            for row in steps
            if "reward" in row
        ],
        "all_stages": {
            name: asdict(change) for name, change in compare_replies(base, tuned).items()
        },
    }


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    model = str(weights.folder("qwen-coder"))
    write_data(folder)
    made = configs(folder, model)
    base = {**made["grpo"], "model": {"name": model, **MODEL}}
    for name, config in (*made.items(), ("grpo_base", base)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for command in commands(folder, model):
        subprocess.run([str(ROOT / "run"), *command], check=True)
    (folder / "cold_start.json").write_text(json.dumps(results(folder), indent=2) + "\n")


if __name__ == "__main__":
    main()
