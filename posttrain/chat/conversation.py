"""A conversation with one or more sides, and what their run knows of its questions."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from eval import Completion, Conversation, Example, Message, PromptFormat, PromptLike, conversation
from eval.gsm8k import Problem
from eval.rewarded import Scorer
from posttrain.base.errors import PostTrainError
from posttrain.base.files import jsonl_rows
from posttrain.chat.source import Source
from posttrain.data.problems import load_problems
from posttrain.scoring import reward_functions
from posttrain.scoring.answers import until_answer
from posttrain.settings import ProblemData
from posttrain.settings.command import check_settings
from rewards import RewardFunction

TOTAL = "total"
Stream = Callable[[Conversation, int], Generator[Completion, None, None]]
"""Replies to a conversation with a seed: yields the reply so far as it grows. Closing the generator
ends the reply. Only the last yield of a reply that the model ended is not `truncated`."""


@dataclass(frozen=True)
class Side:
    """One of the models that answer."""

    name: str
    """`before`, `start` or `after`; `reply` if only one model answers."""
    stream: Stream
    about: str
    """The model, for a reader."""


@dataclass(frozen=True)
class Known:
    """The problems of a GRPO run with their gold answers, and the rewards that it trained on."""

    problems: Mapping[str, Problem]
    """By their question, without what copying changes in it."""
    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]

    def gold(self, question: str) -> str | None:
        """The right answer; None for a question that is not in the run's data."""
        problem = self.problems.get(_key(question))
        return problem.answer if problem else None

    def rewards(
        self, question: str, reply: Completion, prompt: PromptLike
    ) -> dict[str, float | None]:
        """Each reward before its weight, and their weighted total; empty for another question.
        Raises ConfigError if a reward raised, or did not return a number."""
        problem = self.problems.get(_key(question))
        if problem is None:
            return {}
        with reward_functions.reward_errors():
            scored = Scorer(self.functions, self.weights, prompt)(problem, reply)
        earned = {name.rpartition(":")[2]: value for name, value in scored.rewards.items()}
        return {**earned, TOTAL: scored.total_reward}


NOTHING = Known({}, {}, {})


def not_utf8(text: str) -> str | None:
    """The message for a text with the surrogates that Python reads for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "that is not UTF-8; type it again, or try LC_ALL=C.UTF-8"
    return None


@dataclass
class Talk:
    """Questions and replies since the beginning of a conversation."""

    sides: Sequence[Side]
    system: str | None
    seed: int = 0
    known: Known = NOTHING
    examples: Sequence[Example] = ()
    """Worked examples, which every conversation begins with and no side shows."""
    stop_at_answer: bool = False
    """Whether a reply ends at its first complete answer."""
    turns: dict[str, list[Message]] = field(default_factory=dict)
    """By side: user and assistant in turn."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """By question: the question, the system prompt, and each side's reply and rewards."""

    def ask(self, question: str) -> None:
        """Begin a question, which each side may then answer."""
        self.rows.append({"question": question, "system": self.system})

    def answer(self, side: Side) -> Generator[Completion, None, None]:
        """A side's reply to the last question, as it grows. The side remembers what had been
        generated when the generator is closed, unless that is empty."""
        row = self.rows[-1]
        turns = self.turns.setdefault(side.name, [])
        with_question = [*turns, {"role": "user", "content": row["question"]}]
        *opening, _ = conversation(row["question"], self._prompt)
        seed = self.seed + len(self.rows) - 1
        row[side.name] = ""
        try:
            with closing(side.stream([*opening, *with_question], seed)) as stream:
                for reply in stream:
                    shown = until_answer(reply) if self.stop_at_answer else reply
                    row[side.name] = shown.text
                    yield shown
                    if shown is not reply:
                        break
        finally:
            if row[side.name]:
                turns[:] = [*with_question, {"role": "assistant", "content": row[side.name]}]

    def notes(self, side: Side, reply: Completion) -> list[tuple[str, str]]:
        """Notes on a complete reply to the last question: its rewards, if the gold answer is known,
        and whether it was cut. Each with its kind: `good`, `bad` or empty."""
        notes = []
        if reply.truncated:
            why = "--max-new-tokens, or the context is full"
            notes.append((f"cut after {reply.tokens} tokens ({why})", ""))
        question = self.rows[-1]["question"]
        try:
            earned = self.known.rewards(question, reply, self._prompt)
        except PostTrainError as error:
            return [*notes, (f"no rewards: {error}", "")]
        for name, value in earned.items():
            kind = "" if name == TOTAL or value is None else "good" if value > 0 else "bad"
            notes.append((f"{name} {'none' if value is None else f'{value:g}'}", kind))
        if earned:
            self.rows[-1].setdefault("rewards", {})[side.name] = earned
            notes.append((f"right answer {self.known.gold(question)}", ""))
        return notes

    @property
    def _prompt(self) -> PromptFormat:
        return PromptFormat(self.system, self.examples)

    def reset(self, system: str | None) -> None:
        """Begin a new conversation."""
        self.system = system
        self.turns.clear()
        self.rows.clear()


def load_known(source: Source) -> Known:
    """The training and test problems of a GRPO run; NOTHING for others, and with a printed note if
    they or the rewards are not on this machine."""
    if source.run.get("method") != "grpo":
        return NOTHING
    weights: dict[str, float] = source.run.get("rewards") or {}
    try:
        data = check_settings(ProblemData, source.run["data"], f"{source.folder}/config.yaml")
        problems = [problem for side in load_problems(data) for problem in side]
        functions = reward_functions.load(weights, data.answers, source.folder)
    except PostTrainError as error:
        print(f"note: replies are shown without rewards: {error}", file=sys.stderr)
        return NOTHING
    return Known({_key(problem.question): problem for problem in problems}, functions, weights)


def held_out_questions(source: Source, most: int) -> list[str]:
    """At most so many different questions that the run was scored on; none if they are damaged."""
    if source.folder is None:
        return []
    of_pairs = source.run.get("method") == "dpo"
    name, column = ("after_replies.jsonl", "prompt") if of_pairs else ("after.jsonl", "question")
    try:
        rows = jsonl_rows(source.folder / "eval" / name)
    except (OSError, PostTrainError):
        return []
    questions = [row[column] for row in rows if isinstance(row.get(column), str)]
    return list(dict.fromkeys(questions))[:most]


def _key(question: str) -> str:
    """A question without what copying changes in it: line breaks and runs of spaces."""
    return " ".join(question.split())
