"""What the scripts do to two real models, on any CPU: one JSON file for each experiment.

    ./run python -m tests.real.measure EXPERIMENT FOLDER

| experiment | what |
|---|---|
| untrained | 400 GSM8K problems, by transformers and by llama.cpp, both models |
| french | DPO of Qwen-Coder on 220 French pairs; 50 pairs, 50 MGSM and 50 GSM8K problems |
| own_samples | DPO of Qwen-Coder on its own best and worst replies to easy GSM8K problems |
| smollm2_grpo | configs/grpo_gsm8k_smollm2_cpu.yaml on easy GSM8K problems |
| smollm2_french | DPO of SmolLM2 on the same pairs |
| seconds | 4 steps of each config for a CPU; run nothing beside it |

Data, runs and EXPERIMENT.json go into FOLDER; the commands resume where they were stopped. With one
thread an experiment takes a quarter of an hour to an hour. Easy problems are those of
cold_start.py.
"""

import argparse
import json
import os
import platform
import subprocess
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from posttrain.base.processor import computes_in_bfloat16
from tests.helpers import ROOT, SHARED, read, rows
from tests.real import weights
from tests.real.cold_start import SYSTEM, write_data

QWEN, SMOL = "qwen-coder", "smollm2"
GREEDY = ["--max-new-tokens", "256", "--limit", "400"]


def untrained(folder: Path) -> list[list[str]]:
    """Score both models as they come, by transformers and by llama.cpp."""
    gsm8k = str(SHARED / "gsm8k" / "test.jsonl")
    return [
        [
            *("evaluate", "--model", str(of), "--data", gsm8k, *GREEDY, "--batch-size", size),
            *("--output", str(folder / f"{name}-{kind}")),
        ]
        for name in (SMOL, QWEN)
        for kind, of, size in (
            ("transformers", weights.folder(name), "80"),
            ("llama.cpp", weights.gguf(name), "8"),
        )
    ]


def french(folder: Path, name: str = QWEN) -> list[list[str]]:
    """DPO on French pairs, most of which a longer reply wins."""
    config = {QWEN: "dpo_french_cpu", SMOL: "dpo_french_smollm2_cpu"}[name]
    sets = [
        {"name": "mgsm_fr", "path": str(SHARED / "mgsm" / "mgsm_fr.tsv"), "language": "fr"},
        {"name": "gsm8k", "path": str(folder / "test.jsonl")},
    ]
    also = [{**each, "limit": 50, "max_new_tokens": 256} for each in sets]
    return [
        [
            *_train("dpo", config, name, folder / f"french-{name}"),
            f"data.train={{path: {SHARED / 'french-preferences' / 'preferences.json'}}}",
            "data.columns={prompt: instruction, chosen: chosen, rejected: rejected}",
            *("data.holdout=50", "data.validation=30", "evaluation.every=9"),
            *("training.learning_rate=2.0e-5", "training.max_steps=27", "training.save_steps=9"),
            *("evaluation.batch_size=50", f"evaluation.also={json.dumps(also)}"),
        ]
    ]


def own_samples(folder: Path) -> list[list[str]]:
    """Sample with a worked example, then train on the best and worst reply to each problem."""
    test = {"name": "gsm8k", "path": str(folder / "test.jsonl")}
    also = [{**test, "limit": 100, "max_new_tokens": 256}]
    sampled = folder / "sampled"
    return [
        [
            *("evaluate", "--model", str(weights.folder(QWEN))),
            *("--data", str(folder / "train.jsonl"), "--samples", "4", "--temperature", "1"),
            *("--limit", "100", "--max-new-tokens", "160", "--batch-size", "100"),
            *("--examples", str(folder / "examples.jsonl"), "--output", str(sampled)),
        ],
        [
            *_train("dpo", "dpo_french_cpu", QWEN, folder / "own_samples"),
            *(f"data.train={{path: {sampled}}}", "data.format=replies", "data.columns={}"),
            *("data.holdout=10", "data.validation=0", "data.language=en", "evaluation.every=null"),
            *(f"prompt.system={SYSTEM}", "evaluation.batch_size=50", "evaluation.replies=10"),
            *("training.learning_rate=2.0e-5", "training.max_steps=20", "training.save_steps=5"),
            f"evaluation.also={json.dumps(also)}",
        ],
    ]


def smollm2_grpo(folder: Path) -> list[list[str]]:
    """GRPO of a model that solves next to nothing: does it learn the form?"""
    return [
        [
            *_train("grpo", "grpo_gsm8k_smollm2_cpu", SMOL, folder / "smollm2_grpo"),
            f"data.train={{path: {folder / 'train.jsonl'}}}",
            f"data.eval={{path: {folder / 'test.jsonl'}, limit: 100}}",
            *("data.validation=0", "evaluation.every=null", "evaluation.batch_size=100"),
            *("training.max_steps=40", "health.stop_on=[]"),
        ]
    ]


def seconds(folder: Path) -> list[list[str]]:
    """A few steps of the four configs for a CPU, neither scored nor validated."""
    pairs = SHARED / "french-preferences" / "preferences.json"
    data = {
        "grpo": [
            f"data.train={{path: {folder / 'train.jsonl'}}}",
            f"data.eval={{path: {folder / 'test.jsonl'}}}",
        ],
        "dpo": [
            f"data.train={{path: {pairs}, limit: 60}}",
            "data.columns={prompt: instruction, chosen: chosen, rejected: rejected}",
            *("data.holdout=10", "evaluation.also=[]"),
        ],
    }
    short = ["data.validation=0", "evaluation.every=null"]
    short += ["run.score=false", "training.max_steps=4"]
    return [
        [*_train(method, config, model, folder / f"seconds-{config}"), *data[method], *short]
        for method, config, model in (
            ("grpo", "grpo_gsm8k_cpu", QWEN),
            ("dpo", "dpo_french_cpu", QWEN),
            ("grpo", "grpo_gsm8k_smollm2_cpu", SMOL),
            ("dpo", "dpo_french_smollm2_cpu", SMOL),
        )
    ]


def _train(method: str, config: str, model: str, run: Path) -> list[str]:
    path = ROOT / "configs" / f"{config}.yaml"
    own = [f"model.name={weights.folder(model)}", "run.threads=1"]
    return [method, "--config", str(path), "--output", str(run), *own]


EXPERIMENTS = {
    "untrained": untrained,
    "french": french,
    "own_samples": own_samples,
    "smollm2_grpo": smollm2_grpo,
    "smollm2_french": lambda folder: french(folder, SMOL),
    "seconds": seconds,
}


def measured(output: Path) -> dict[str, Any]:
    """What the command wrote that made this folder: a report, or the scores of a run."""
    if (output / "report.json").exists():
        report = read(output / "report.json")
        return {"measures": report["measures"], "rewards": report.get("rewards")}
    environment = read(output / "environment.json")
    steps = [row for row in rows(output / "metrics.jsonl") if "loss" in row]
    if not (output / "eval" / "comparison.json").exists():
        ends = [row["seconds"] for row in steps]
        each = [round(end - start, 1) for start, end in pairwise(ends)]  # but of the first step
        return {
            "seconds_a_step": median(each),
            "each": each,
            "tokens_a_reply": [row.get("completions/mean_length") for row in steps],
            "peak_memory": environment.get("peak_memory"),
            "versions": environment["versions"],
        }
    kept = ("step", "reward", "rewards/margins", "frac_reward_zero_std", "loss")
    return {
        "before": read(output / "eval/before.json"),
        "after": read(output / "eval/after.json"),
        "change": read(output / "eval/comparison.json"),
        "trained": environment["trained"],
        "peak_memory": environment.get("peak_memory"),
        "versions": environment["versions"],
        "steps": [{name: row[name] for name in kept if name in row} for row in steps],
    }


def processor() -> str:
    """Its name in Linux's list, and whether it computes in bfloat16."""
    cpus = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {'with' if computes_in_bfloat16() else 'without'} bfloat16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    write_data(folder)
    results: dict[str, Any] = {
        "command": f"./run python -m tests.real.measure {args.experiment} FOLDER",
        "machine": f"{os.cpu_count()} CPU cores, {processor()}",
    }
    for command in EXPERIMENTS[args.experiment](folder):
        load = os.getloadavg()[0]
        subprocess.run([str(ROOT / "run"), *command], check=True)
        output = Path(command[command.index("--output") + 1])
        results[output.name] = {**measured(output), "load_before": round(load, 2)}
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{args.experiment}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
