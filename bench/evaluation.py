"""Our generation for a score and lm-eval's Hugging Face backend, side by side in one process.

    python bench/evaluation.py --output bench/results/evaluation.json

lm-eval is not in the environment. It goes, with what it imports, into a folder of its own:

    uv pip install --no-deps --target /tmp/lmeval lm-eval evaluate sacrebleu rouge-score \\
        sqlitedict more-itertools pytablewriter word2number jsonlines zstandard dataproperty \\
        tabledata typepy mbstrdecoder pathvalidate tcolorpy portalocker tabulate colorama lxml \\
        nltk absl-py
    PYTHONPATH=/tmp/lmeval python bench/evaluation.py

Same weights in float32, same questions, same chat prompts, same limit, greedy, both ending at the
model's end token. The sides take turns; figures are medians over the repetitions, after one short
warm-up each. Seconds of the processor are given beside those of the clock, which other work on the
machine disturbs.

Two sets of replies, since what batching costs depends on how their lengths differ:
- `even`: the demo model as it is, whose replies are short and alike.
- `uneven`: the same model with noise on its weights. What it writes is nonsense, but from a few
  tokens to the limit, as the replies of real models to real problems are.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.command import finish, machine, parser
from eval import Conversation, PromptFormat, conversation
from eval.gsm8k import SYSTEM
from posttrain.data.problems import load_evaluation
from posttrain.model import inference, pretrained, runtime
from posttrain.settings import Evaluation, ProblemColumns, Source

MODEL = ROOT / "assets" / "demo_model"
PROBLEMS = "assets/demo_data/problems_test.jsonl"
QUESTIONS, MAX_NEW_TOKENS, REPETITIONS = 192, 256, 5
BATCH = 32
NOISE_SEED = 1
NOISE = 1.0  # standard deviations of each weight tensor
PACKAGES = ("lm-eval", "torch", "transformers", "unsloth", "unsloth_zoo")
Side = Callable[[Sequence[Conversation]], list[str]]


def ours(model: Any, tokenizer: Any, batch_size: int) -> Side:
    evaluation = Evaluation(batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS)

    def answer(conversations: Sequence[Conversation]) -> list[str]:
        generate = inference.generator(model, tokenizer, evaluation, seed=0)
        return [completion.text for completion in generate(conversations)]

    return answer


def lm_eval(model: Any, tokenizer: Any, batch_size: int) -> Side:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=1024)
    ends, limit = [tokenizer.eos_token], MAX_NEW_TOKENS
    options = {"until": ends, "max_gen_toks": limit, "do_sample": False}

    def answer(conversations: Sequence[Conversation]) -> list[str]:
        requested = [
            Instance("generate_until", {}, (backend.apply_chat_template(turns), options), 0)
            for turns in map(list, conversations)
        ]
        return list(backend.generate_until(requested, disable_tqdm=True))

    return answer


def add_noise(*models: Any) -> None:
    """The same noise on each model's weights."""
    import torch

    for model in models:
        torch.manual_seed(NOISE_SEED)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(NOISE * weight.std() * torch.randn_like(weight))


def measure(sides: dict[str, Side], conversations: Sequence[Conversation]) -> dict[str, Any]:
    """Medians of each side's questions a second, and of the share of texts that are the same."""
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, list[str]] = {}
    for answer in sides.values():
        answer(conversations[:BATCH])
    for _ in range(REPETITIONS):
        for name, answer in sides.items():
            started, used = time.perf_counter(), time.process_time()
            texts[name] = answer(conversations)
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    first = texts[f"ours, batch {BATCH}"]
    return {
        name: {
            "questions_per_second": rate(clock[name]),
            "questions_per_processor_second": rate(processor[name]),
            "seconds": [round(value, 3) for value in clock[name]],
            "same_texts_as_ours": sum(map(str.__eq__, texts[name], first)) / len(first),
        }
        for name in sides
    }


def rate(seconds: Sequence[float]) -> float:
    """Questions a second of the median repetition."""
    return round(QUESTIONS / statistics.median(seconds), 1)


def run() -> dict[str, Any]:
    runtime.start(verbose=False, threads=None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    problems = load_evaluation(Source(path=PROBLEMS, limit=QUESTIONS), ProblemColumns())
    conversations = [
        conversation(problem.question, PromptFormat(SYSTEM["en"])) for problem in problems
    ]
    own = pretrained.load_for_scoring(str(MODEL), False, "float32", 1024)
    theirs = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    other = (theirs, AutoTokenizer.from_pretrained(MODEL))
    sides = {
        f"ours, batch {BATCH}": ours(*own, BATCH),
        f"lm-eval, batch {BATCH}": lm_eval(*other, BATCH),
        "ours, batch 1": ours(*own, 1),
        "lm-eval, batch 1": lm_eval(*other, 1),
    }
    result: dict[str, Any] = {
        **machine(PACKAGES),
        "threads": torch.get_num_threads(),
        "questions": QUESTIONS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "repetitions": REPETITIONS,
    }
    for name in ("even", "uneven"):
        if name == "uneven":
            add_noise(own[0], theirs)
        evaluation = Evaluation(batch_size=BATCH, max_new_tokens=MAX_NEW_TOKENS)
        replies = inference.generator(*own, evaluation, seed=0)(conversations)
        lengths = [reply.tokens for reply in replies]
        measured = measure(sides, conversations)
        result[name] = {
            "reply_tokens": {
                "mean": round(statistics.mean(lengths), 1),
                "deciles": [round(value) for value in statistics.quantiles(lengths, n=10)],
                "longest": max(lengths),
                "at_the_limit": sum(reply.truncated for reply in replies),
            },
            "sides": measured,
            "times_faster": {
                f"both at batch {BATCH}": ratio(measured, BATCH, BATCH),
                "both at batch 1": ratio(measured, 1, 1),
                "each at its default": ratio(measured, BATCH, 1),
            },
        }
    return result


def ratio(measured: dict[str, Any], own: int, other: int) -> dict[str, float]:
    """How many times ours is as fast, by the clock and by the processor's seconds."""
    first, second = measured[f"ours, batch {own}"], measured[f"lm-eval, batch {other}"]
    units = {"clock": "questions_per_second", "processor": "questions_per_processor_second"}
    return {name: round(first[unit] / second[unit], 2) for name, unit in units.items()}


def main() -> int:
    arguments = parser(__doc__).parse_args()
    if find_spec("lm_eval") is None:
        print("lm-eval is not installed; --help says how to get it", file=sys.stderr)
        return 2
    return finish(run(), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
