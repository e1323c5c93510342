"""Word problems and replies in English and French for the demo model, drawn from a seed.

A problem is a little story of a few operations. Every step of its solution is known, so a reply can
be written in any of three manners and checked exactly.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from eval.gsm8k import SYSTEM

Language = Literal["en", "fr"]
Manner = Literal["guess", "untagged", "tagged"]
Split = Literal["train", "preferences", "test"]
Operation = Literal["gain", "lose", "pack", "share"]

# What the model does untrained. Guessing leads, so greedy decoding nearly always guesses; the one
# manner worth full marks is common enough that a group of eight samples contains it.
HABIT: dict[Manner, float] = {"guess": 0.57, "untagged": 0.20, "tagged": 0.23}

STORIES = yaml.safe_load(Path(__file__).with_name("stories.yaml").read_text(encoding="utf-8"))
LEADS: dict[Language, dict[Manner, str]] = {
    language: words["leads"] for language, words in STORIES.items()
}
# Beside the prompts of the demos, a few others and none at all, so that no wording is special.
SYSTEM_PROMPTS: tuple[str | None, ...] = (
    SYSTEM["en"],
    SYSTEM["fr"],
    "Tu es un assistant qui répond en français.",  # of configs/dpo_demo.yaml
    None,
    "You are a helpful assistant.",
    "Work out the answer and write it on the last line as <answer>NUMBER</answer>.",
    "Calcule la réponse et écris-la sur la dernière ligne : <answer>NOMBRE</answer>.",
    "Tu réponds toujours en français.",
)


@dataclass(frozen=True)
class Range:
    """How large the numbers of a story get, and how many operations it may have."""

    start: int
    change: int
    factor: int
    ceiling: int
    operations: int


SMALL = Range(start=60, change=30, factor=9, ceiling=99, operations=2)
LARGE = Range(start=400, change=200, factor=12, ceiling=999, operations=4)


@dataclass(frozen=True)
class Problem:
    language: Language
    question: str
    steps: tuple[str, ...]  # each like "12+7=19"
    answer: int

    @property
    def working(self) -> str:
        return " ".join(f"{step}." for step in self.steps)

    def gsm8k(self) -> dict[str, str]:
        """The row of a file in GSM8K's form."""
        return {"question": self.question, "answer": f"{self.working}\n#### {self.answer}"}


Plan = tuple[int | None, list[tuple[Operation, int, int]], tuple[str, ...], int]
"""Opening number (None if the story opens with packs), operations, steps and answer."""


def draw_problem(rng: random.Random, language: Language, span: Range) -> Problem:
    """A problem whose every value is an integer from 1 to the span's ceiling."""
    plan = None
    while plan is None:
        plan = _draw_plan(rng, span, rng.randint(1, span.operations))
    return _story(rng, language, plan)


def draw_drill(rng: random.Random, span: Range, operations: int) -> Problem:
    """A bare calculation from left to right, "12+7-5": far more sums a token than stories."""
    plan = None
    while plan is None:
        plan = _draw_plan(rng, span, operations)
    _, _, steps, answer = plan
    rests = "".join(step.split("=")[0].lstrip("0123456789") for step in steps[1:])
    return Problem("en", steps[0].split("=")[0] + rests, steps, answer)


def _draw_plan(rng: random.Random, span: Range, count: int) -> Plan | None:
    operations: list[tuple[Operation, int, int]] = []
    steps: list[str] = []
    opening: int | None = None
    value = 0
    if rng.random() < 0.3:
        bags, each = rng.randint(2, span.factor), rng.randint(2, span.factor)
        value = bags * each
        operations.append(("pack", bags, each))
        steps.append(f"{bags}*{each}={value}")
    else:
        opening = value = rng.randint(4, span.start)
    while len(steps) < count:
        last = len(steps) == count - 1
        kind: Operation = rng.choice(("gain", "lose", "share") if last else ("gain", "lose"))
        if kind == "share":
            number = rng.randint(2, span.factor)
            if value % number or value // number > span.factor or value == number:
                return None
            symbol, after = "/", value // number
        else:
            number = rng.randint(2, span.change)
            symbol, after = ("+", value + number) if kind == "gain" else ("-", value - number)
            if not 1 <= after <= span.ceiling:
                return None
        operations.append((kind, number, 0))
        steps.append(f"{value}{symbol}{number}={after}")
        value = after
    return opening, operations, tuple(steps), value


def _story(rng: random.Random, language: Language, plan: Plan) -> Problem:
    story, (opening, operations, steps, answer) = STORIES[language], plan
    people = [(name, pronoun) for pronoun, names in story["names"].items() for name in names]
    (name, pronoun), (friend, _) = rng.sample(people, 2)
    words = {"n": name, "p": pronoun, "f": friend, "o": rng.choice(story["objects"])}
    sentences = []
    if opening is not None:
        sentences.append(rng.choice(story["openings"]).format(x=opening, **words))
    for kind, x, y in operations:
        sentence = rng.choice(story["events"][kind]).format(x=x, y=y, **words)
        for adverb in ("Then", "Puis"):  # a pronoun is capital only where it opens the sentence
            sentence = sentence.replace(f"{adverb} {pronoun}", f"{adverb} {pronoun.lower()}")
        sentences.append(sentence)
    questions = story["shares" if operations[-1][0] == "share" else "totals"]
    sentences.append(rng.choice(questions).format(**words))
    return Problem(language, " ".join(sentences), steps, answer)


def draw_manner(rng: random.Random) -> Manner:
    return rng.choices(list(HABIT), weights=list(HABIT.values()))[0]


def draw_reply(rng: random.Random, problem: Problem, language: Language, manner: Manner) -> str:
    """A reply in the given language and manner; only a guess may be wrong."""
    lead = LEADS[language][manner]
    if manner == "guess":
        # Near the answer, as a person guesses: right about one time in ten.
        guess = max(1, problem.answer + rng.randint(-5, 5) + rng.randint(-5, 5))
        return f"{lead}\n<answer>{guess}</answer>"
    if manner == "untagged":
        return f"{lead} {problem.working} {STORIES[language]['closing']} {problem.answer}."
    return f"{lead} {problem.working}\n<answer>{problem.answer}</answer>"


def draw_language(rng: random.Random, question_language: Language) -> Language:
    """An English question gets English; a French one gets either, evenly."""
    return "fr" if question_language == "fr" and rng.random() < 0.5 else "en"


def split_of(question: str) -> Split:
    """The split a question belongs to, by a hash of its text: no two splits can share one."""
    bucket = hashlib.sha256(question.encode()).digest()[0]
    return "test" if bucket < 26 else "preferences" if bucket < 52 else "train"


class ProblemStream:
    """Endless problems of one split; French ones with the given probability."""

    def __init__(self, seed: int, split: Split, span: Range, french: float = 0.5) -> None:
        # A string seeds random.Random the same way on every Python.
        self.rng = random.Random(f"{seed} {split}")
        self.split, self.span, self.french = split, span, french

    def draw(self) -> Problem:
        while True:
            language: Language = "fr" if self.rng.random() < self.french else "en"
            problem = draw_problem(self.rng, language, self.span)
            if split_of(problem.question) == self.split:
                return problem

    def draw_unique(self, count: int) -> list[Problem]:
        problems: dict[str, Problem] = {}
        while len(problems) < count:
            problem = self.draw()
            problems.setdefault(problem.question, problem)
        return list(problems.values())


def preference_row(rng: random.Random, problem: Problem) -> dict[str, str]:
    """A French reply over an English one; their manners are drawn apart, so only language differs
    systematically."""
    return {
        "prompt": problem.question,
        "chosen": draw_reply(rng, problem, "fr", draw_manner(rng)),
        "rejected": draw_reply(rng, problem, "en", draw_manner(rng)),
    }
