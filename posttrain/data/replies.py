"""Replies that ./run evaluate sampled and scored, as data to train on (data.format: replies)."""

from dataclasses import dataclass
from itertools import groupby

from posttrain.base.errors import DataError
from posttrain.base.paths import here_or_project
from posttrain.data.sources import Row, read_rows
from posttrain.settings.data import PassRate, Source
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
    try:
        if "total_reward" in values:
            total = values["total_reward"]
        elif {"format_rate", "tagged"} <= values.keys():
            total = FORMAT_REWARD * values["format_rate"] + CORRECTNESS_REWARD * values["tagged"]
        else:
            raise DataError(f"{row.where} is not a scored reply of ./run evaluate: no total_reward")
        total = None if total is None else float(total)
    except (TypeError, ValueError):
        raise DataError(f"{row.where}: what the reply earned is not a number") from None
    if total is None:
        return None
    return Sampled(
        question=row.text("question"),
        answer=row.text("answer"),
        reply=row.text("reply", may_be_empty=True),
        total=total,
        complete=not values.get("truncated_rate"),
        where=row.where,
    )


def pass_rates(rule: PassRate) -> dict[str, float]:
    """By question, the share of its sampled replies that earned the highest reward of the file.
    Raises a DataError where all earned the same."""
    groups = read_sampled(Source(path=rule.replies))
    totals = {row.total for group in groups for row in group}
    if len(totals) == 1:
        raise DataError(
            f"data.pass_rate: every reply in {rule.replies} earned {totals.pop():g}, so none shows "
            "which problems are solved; sample with a model that earns rewards (docs/stages.md)"
        )
    highest = max(totals, default=0.0)
    return {
        group[0].question: sum(row.total == highest for row in group) / len(group)
        for group in groups
    }
