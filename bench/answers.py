"""Our answer extraction and math-verify's, on the same strings in one process.

    pip install math-verify      # in an environment of its own, or this one; nothing else is needed
    python bench/answers.py [--completions 1000] [--output bench/results/answers.json]

Two sets: completions generated from a seed (two to six lines of reasoning in English or French,
then the answer in one of the ways models write it), and the hand-written free-text and element
cases of tests/unit/answer_cases.tsv. The right reading is known in both, so a disagreement says who
is wrong by this project's rules. They are not math-verify's rules: it aims at mathematics at large,
and runs with its defaults, on the same text without our tags, which it does not know. That our
reading is right on the table is what the unit tests assert, not a finding.

Times are the median of passes over the whole set, after one that warms up.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rewards.answer import extract_last, extract_tagged

PASSES = 5

ENGLISH = [
    "First, {a} boxes of {b} make {a} * {b} = {c}.",
    "Then we add the {b} from the {a} friends, which gives {c} in all.",
    "That is ${a}.50 per hour, or {b}% of the price.",
    "So the total is {c} - {a} = {b}.",
]
FRENCH = [
    "D'abord, {a} boîtes de {b} font {a} × {b} = {c}.",
    "On ajoute ensuite les {b} des {a} amis, ce qui donne {c} en tout.",
    "Cela fait {a},50 € par heure, soit {b} % du prix.",
    "Le total est donc {c} - {a} = {b}.",
]
NARROW = "\u202f"
# How the answer is written: name, reasoning, sentence, and how the number is grouped and pointed.
ENDINGS = [
    ("en plain", ENGLISH, "The answer is {}.", "", "."),
    ("en grouped", ENGLISH, "The answer is {}.", ",", "."),
    ("en money", ENGLISH, "She earns ${} in total.", ",", "."),
    ("en percent", ENGLISH, "So it is {}% of the class.", "", "."),
    ("en unit", ENGLISH, "They walked {} miles.", ",", "."),
    ("en gsm8k", ENGLISH, "#### {}", ",", "."),
    ("en boxed", ENGLISH, "The answer is \\boxed{{{}}}.", "", "."),
    ("en bold", ENGLISH, "The answer is **{}**.", "", "."),
    ("en tag", ENGLISH, "<answer>{}</answer>", "", "."),
    ("fr plain", FRENCH, "La réponse est {}.", "", ","),
    ("fr space", FRENCH, "La réponse est {}.", " ", ","),
    ("fr narrow space", FRENCH, "La réponse est {}.", NARROW, ","),
    ("fr euros", FRENCH, "Elle gagne {} €.", NARROW, ","),
    ("fr dollars", FRENCH, "Il gagne {} $.", " ", ","),
    ("fr percent", FRENCH, "Cela fait {} %.", "", ","),
    ("fr tag", FRENCH, "<answer>{}</answer>", " ", ","),
]


@dataclass(frozen=True)
class Sample:
    """A text, the number it states (None: no number), and the kind of text it is."""

    kind: str
    text: str
    expected: Decimal | None

    @property
    def untagged(self) -> str:
        return self.text.replace("<answer>", "").replace("</answer>", "")


def completions(count: int, seed: int = 0) -> list[Sample]:
    """`count` seeded completions, each way of ending in turn."""
    rng = random.Random(seed)
    samples = []
    for index in range(count):
        kind, sentences, ending, group, point = ENDINGS[index % len(ENDINGS)]
        lines = []
        for _ in range(rng.randint(2, 6)):
            a, b = rng.randint(2, 90), rng.randint(2, 90)
            lines.append(rng.choice(sentences).format(a=a, b=b, c=a * b))
        units = rng.choice([rng.randint(1, 99), rng.randint(100, 999), rng.randint(1000, 99999)])
        sign = "-" if rng.random() < 0.1 else ""
        cents = rng.choice(["", "", "5", "25", "00"])
        number = sign + f"{units:,}".replace(",", group) + (point + cents if cents else "")
        expected = Decimal(f"{sign}{units}.{cents or 0}")
        samples.append(Sample(kind, "\n".join([*lines, ending.format(number)]), expected))
    return samples


def table() -> list[Sample]:
    """The free-text and element rows of the test table, but for those of over 500 characters."""
    path = ROOT / "tests" / "unit" / "answer_cases.tsv"
    samples = []
    for line in path.read_text(encoding="ascii").splitlines()[1:]:
        rule, _, rest = line.partition("\t")
        if rule not in ("last", "element"):
            continue
        cell, expected, _reason = rest.split("\t")
        text = json.loads(cell) if rule == "last" else f"<answer>{json.loads(cell)}</answer>"
        if len(text) <= 500:
            value = None if expected == "-" else Decimal(expected)
            samples.append(Sample(f"table {rule}", text, value))
    return samples


def ours(sample: Sample) -> Decimal | None:
    """Evaluation's lenient reading (tagged, else last); a table's row, by its own rule alone."""
    if sample.kind == "table last":
        return extract_last(sample.text)
    tagged = extract_tagged(sample.text)
    return (
        tagged
        if tagged is not None or sample.kind == "table element"
        else extract_last(sample.text)
    )


def microseconds(read: Callable[[Any], object], inputs: Sequence[Any], passes: int) -> float:
    """Median over `passes` of the mean time of one call, after one pass to warm up."""
    means = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for item in inputs:
            read(item)
        means.append((time.perf_counter() - start) / len(inputs) * 1e6)
    return statistics.median(means[1:])


def measure(samples: Sequence[Sample], math_verify: Any) -> dict[str, Any]:
    """Times, agreement on the verdict "states the expected number", and every disagreement."""
    parse, verify = math_verify.parse, math_verify.verify
    our_time = microseconds(ours, samples, PASSES)
    their_time = microseconds(parse, [s.untagged for s in samples], PASSES)

    verdicts: dict[str, dict[str, int]] = {}
    disagreements = []
    for sample in samples:
        reading, theirs = ours(sample), parse(sample.untagged)
        we_are_right = reading == sample.expected
        if sample.expected is None:
            they_are_right = theirs == []
        else:
            they_are_right = bool(verify(parse(str(sample.expected)), theirs))
        row = verdicts.setdefault(
            sample.kind, {"n": 0, "agree": 0, "ours_right": 0, "math_verify_right": 0}
        )
        row["n"] += 1
        row["agree"] += we_are_right == they_are_right
        row["ours_right"] += we_are_right
        row["math_verify_right"] += they_are_right
        if we_are_right != they_are_right:
            disagreements.append(
                {
                    "kind": sample.kind,
                    "last_line": sample.text.rpartition("\n")[2],
                    "expected": None if sample.expected is None else str(sample.expected),
                    "ours": None if reading is None else str(reading),
                    "math_verify": [str(value) for value in theirs],
                }
            )
    return {
        "strings": len(samples),
        "mean_characters": round(statistics.mean(len(s.text) for s in samples), 1),
        "ours_us": round(our_time, 2),
        "math_verify_us": round(their_time, 1),
        "times_faster": round(their_time / our_time, 1),
        "agreement": round(sum(r["agree"] for r in verdicts.values()) / len(samples), 4),
        "ours_right": sum(r["ours_right"] for r in verdicts.values()),
        "math_verify_right": sum(r["math_verify_right"] for r in verdicts.values()),
        "by_kind": verdicts,
        "disagreements": disagreements,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--completions", type=int, default=1000, help="how many to generate")
    parser.add_argument("--output", type=Path, help="where to write the JSON result")
    arguments = parser.parse_args()
    try:
        import math_verify
    except ImportError:
        print("math-verify is not installed: pip install math-verify", file=sys.stderr)
        return 2
    from importlib.metadata import version

    result: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "math_verify": version("math-verify"),
        "passes": PASSES,
        "completions": measure(completions(arguments.completions), math_verify),
        "table": measure(table(), math_verify),
    }
    for name in ("completions", "table"):
        summary = {**result[name]}
        listed = summary.pop("disagreements")
        print(name, json.dumps(summary, indent=1), f"{len(listed)} disagreements", sep="\n")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
