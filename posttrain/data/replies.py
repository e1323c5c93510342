"""Replies that ./run evaluate sampled and scored, as data to train on (data.format: replies)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from eval.demonstration import Demonstration
from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.base.paths import here_or_project
from posttrain.data.messages import user_turn
from posttrain.data.sources import Row, read_rows
from posttrain.settings.data import Keep, PassRate, Source
from rewards.gsm8k import CORRECTNESS_REWARD, FORMAT_REWARD


@dataclass(frozen=True)
class Sampled:
    """A sampled reply to a question, and the weighted total of its rewards."""

    question: str
    answer: str
    reply: str
    total: float
    complete: bool
    """The model ended it, not the length limit."""
    where: str


def read_sampled(source: Source) -> list[list[Sampled]]:
    """The scored replies of a replies.jsonl (or of its folder), grouped by question. Raises a
    DataError where it cannot be read, or a row is not a scored reply."""
    if (inside := here_or_project(source.path) / "replies.jsonl").is_file():
        source = source.model_copy(update={"path": str(inside)})
    rows = [_sampled(row) for row in read_rows(source)]
    known = sorted((row for row in rows if row is not None), key=lambda row: row.question)
    return [list(group) for _, group in groupby(known, key=lambda row: row.question)]


def _sampled(row: Row) -> Sampled | None:
    """The row's reply; None for one that no reward could score."""
    values = row.values
    if "total_reward" in values:
        total = values["total_reward"]
    elif {"format_rate", "tagged"} <= values.keys():
        total = FORMAT_REWARD * values["format_rate"] + CORRECTNESS_REWARD * values["tagged"]
    else:
        raise DataError(f"{row.where} is not a scored reply of ./run evaluate: no total_reward")
    if total is None:
        return None
    return Sampled(
        question=row.text("question"),
        answer=row.text("answer"),
        reply=row.text("reply", may_be_empty=True),
        total=float(total),
        complete=not values.get("truncated_rate"),
        where=row.where,
    )


def best_replies(
    groups: Iterable[Sequence[Sampled]], keep: Keep, where: str
) -> list[Demonstration]:
    """The shortest different replies to each question that earned enough. Prints what was left out;
    raises a DataError where none did."""
    kept: list[Demonstration] = []
    left: Counter[str] = Counter()
    total = questions = 0
    for group in groups:
        total += len(group)
        earned = [row for row in group if row.total >= keep.reward and row.complete and row.reply]
        different = {row.reply: row for row in sorted(earned, key=lambda r: len(r.reply))}
        best = list(different.values())[: keep.per_question]
        kept += [
            Demonstration((user_turn(row.question),), row.reply, row.answer, where=row.where)
            for row in best
        ]
        questions += bool(best)
        left[f"earned below {keep.reward:g} or were cut"] += len(group) - len(earned)
        left["repeat another"] += len(earned) - len(different)
        left[f"are beyond {keep.per_question} of a question"] += len(different) - len(best)
    why = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
    print(f"{where}: kept {len(kept)} of {total} replies, to {questions} questions; {why or 'all'}")
    if not kept:
        raise DataError(
            f"{where}: no reply earned {keep.reward:g}; sample more (--samples), with worked "
            "examples (--examples), or lower data.keep.reward"
        )
    return kept


def best_and_worst(groups: Sequence[Sequence[Sampled]], where: str) -> list[Pair]:
    """For each question, the shortest complete reply that earned most and one that earned least,
    complete if there is such. Questions without two such are left out, which is printed; raises a
    DataError where all are."""
    pairs = []
    for group in groups:
        ranked = sorted((r for r in group if r.reply), key=lambda r: (-r.total, len(r.reply)))
        best = next((row for row in ranked if row.complete), None)
        worst = min(ranked, key=lambda r: (r.total, not r.complete), default=None)
        if best is not None and worst is not None and worst.total < best.total:
            prompt = (user_turn(best.question),)
            pairs.append(Pair(prompt, best.reply, worst.reply, where=best.where))
    print(
        f"{where}: {len(pairs)} questions give a pair; {len(groups) - len(pairs)} left out, as "
        "their replies tie or were cut"
    )
    if not pairs:
        raise DataError(f"{where}: no question has replies of different rewards")
    return pairs


def pass_rates(rule: PassRate) -> dict[str, float]:
    """By question, the share of its sampled replies that earned the highest reward of the file."""
    groups = read_sampled(Source(path=rule.replies))
    highest = max((row.total for group in groups for row in group), default=0.0)
    return {
        group[0].question: sum(row.total == highest for row in group) / len(group)
        for group in groups
    }
