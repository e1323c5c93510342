"""The replies of an evaluation on disk: kept as they come, read back, resumed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.gsm8k import Problem, Reply, Score, completion_of, rescore
from eval.rewarded import RewardedReply
from posttrain.base import files
from posttrain.base.errors import ConfigError, DataError, quoted
from posttrain.base.files import cut_off_half_line, jsonl_rows, rows_of, write_json, write_text


def resume(folder: Path, request: dict[str, Any]) -> dict[tuple[str, int], Reply]:
    """Replies of an earlier, interrupted call with the same request; raises as `check_request`."""
    check_request(folder, request)
    replies = folder / "replies.jsonl"
    if not replies.exists():
        return {}
    cut_off_half_line(replies)
    kept = read_replies(replies)
    if kept:
        print(f"{len(kept)} replies kept from an earlier call")
    return {(reply.question, reply.sample): reply for reply in kept}


def score_again(
    folder: Path, done: dict[tuple[str, int], Reply], problems: Sequence[Problem], score: Score[Any]
) -> None:
    """Score the replies of an earlier call by the rewards of now, in `done` and on disk."""
    by_question = {problem.question: problem for problem in problems}
    for (question, sample), reply in done.items():
        done[question, sample] = score(by_question[question], completion_of(reply.as_row()), sample)
    lines = (json.dumps(reply.as_row(), ensure_ascii=False) + "\n" for reply in done.values())
    write_text(folder / "replies.jsonl", "".join(lines))


def claim(folder: Path, request: dict[str, Any]) -> None:
    """Make the folder that of the request, in request.json; raises as `check_request`."""
    check_request(folder, request)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "request.json", request)


def check_request(folder: Path, request: dict[str, Any]) -> None:
    """Raise ConfigError if the folder is that of another request."""
    if changed := _changed(folder, request):
        raise ConfigError(
            f"{folder} holds another evaluation ({'; '.join(changed)}); give another --output or "
            "remove it"
        )


def folder_for(default: Path, request: dict[str, Any]) -> Path:
    """`default`, or if that holds another request, the first of DEFAULT-2, DEFAULT-3 ... that is
    free or holds this one; says so."""
    folder, number = default, 1
    while _changed(folder, request):
        number += 1
        folder = default.with_name(f"{default.name}-{number}")
    if number > 1:
        changed = "; ".join(_changed(default, request))
        print(f"{default} holds another evaluation ({changed}); this one is in {folder.name}")
    return folder


def _changed(folder: Path, request: dict[str, Any]) -> list[str]:
    """How a request differs from the one that a folder belongs to; empty if it is free."""
    path = folder / "request.json"
    if not path.exists():
        return []
    earlier = files.read_object(path)
    return [
        f"{k} was {_shown(earlier.get(k))}, now {_shown(v)}"
        for k, v in request.items()
        if earlier.get(k) != v
    ]


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def read_replies(path: Path) -> list[Reply]:
    """The replies in a file, scored afresh; those that rewards scored have their scores of then, as
    rewards may read more than a reply. A last line that was cut off is left out; raises DataError
    for another that is not a reply."""
    damaged: list[int] = []
    try:
        rows = jsonl_rows(path, damaged)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if damaged:
        raise DataError(f"{path}: line {damaged[0]} is not a scored reply: not a JSON object")
    if rows and "rewards" in rows[0]:
        return list(rows_of(RewardedReply, rows, path))
    replies: list[Reply] = []
    for number, reply in enumerate(rows_of(Reply, rows, path), start=1):
        try:
            replies.append(rescore(reply.as_row()))
        except ValueError as error:  # the gold answer
            raise DataError(f"{path}: row {number} is not a scored reply: {error}") from None
    return replies
