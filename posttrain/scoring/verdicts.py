"""A judge's verdicts: asked for over HTTP, kept as they come, read back and gone on from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge import ORDERS, Comparison, Order, Verdict, parse_verdict, question
from eval.replies import Asked, PromptReply
from posttrain.base.errors import ConfigError, DataError
from posttrain.base.files import append_rows, cut_off_half_line, jsonl_rows, rows_of
from posttrain.base.progress import progress_bar
from posttrain.model.server import Ask, as_they_come
from posttrain.run.replies import claim

VERDICTS = "verdicts.jsonl"
Given = dict[tuple[int, Order], Verdict | None]
"""The verdict on a comparison, by its place, in each order; None for one that cannot be read."""


def read_comparisons(run: Path) -> list[Comparison]:
    """The replies that a DPO run wrote before and after its training, prompt by prompt.

    Raises:
        ConfigError: it wrote none, or the two sides do not belong together.
        DataError: a row is not a reply.
    """
    before, after = (_replies(run, side) for side in ("before", "after"))
    if [(r.system, r.earlier, r.prompt) for r in before] != [
        (r.system, r.earlier, r.prompt) for r in after
    ]:
        raise ConfigError(f"{run}: the replies before and after are not to the same prompts")
    if not before:
        raise ConfigError(f"{run}: no replies to judge; evaluation.replies was 0")
    return [
        Comparison(_conversation(first), first.text, second.text, first.system)
        for first, second in zip(before, after, strict=True)
    ]


def _replies(run: Path, side: str) -> list[PromptReply]:
    path = run / "eval" / f"{side}_replies.jsonl"
    try:
        return rows_of(PromptReply, jsonl_rows(path), path)
    except FileNotFoundError:
        raise ConfigError(f"{run}: no finished DPO run there ({path} is missing)") from None


def _conversation(asked: Asked) -> str:
    """The last user turn, below the turns that came before it, if any."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in asked.earlier]
    return "\n\n".join([*turns, f"user: {asked.prompt}"]) if turns else asked.prompt


def read_verdicts(path: Path) -> Given:
    """The verdicts that an earlier call left, their replies read afresh."""
    if not path.exists():
        return {}
    cut_off_half_line(path)
    given: Given = {}
    for number, row in enumerate(jsonl_rows(path), start=1):
        try:
            given[row["comparison"], row["order"]] = parse_verdict(row["reply"])
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: line {number} is not a verdict") from None
    return given


def missing(compared: Sequence[Comparison], given: Given) -> list[tuple[int, Order]]:
    """What is still to be asked; identical replies are not."""
    return [
        (place, order)
        for place, each in enumerate(compared)
        for order in ORDERS
        if not each.identical and (place, order) not in given
    ]


def ask_all(
    compared: Sequence[Comparison],
    given: Given,
    ask: Ask,
    folder: Path,
    request: dict[str, Any],
    at_once: int,
) -> None:
    """Ask for every verdict that `given` lacks, `at_once` at a time; fills `given` and the file.

    `request` says in which language and with which seed; the first verdict claims the folder for
    it. After an error nothing more is asked, but what is answered by then is kept.

    Raises:
        ConfigError: the server cannot be reached, refuses the request or answers something else.
    """
    todo, language = missing(compared, given), request["language"]
    requests = [
        (question(compared[place], order, language), request["seed"]) for place, order in todo
    ]
    with progress_bar("judging", len(todo), leave=True) as bar:
        for number, reply in as_they_come(ask, requests, at_once):
            place, order = todo[number]
            verdict = given[place, order] = parse_verdict(reply.text)
            row = {"comparison": place, "order": order, "verdict": verdict, "reply": reply.text}
            if not (folder / "request.json").is_file():
                claim(folder, request)
            append_rows(folder / VERDICTS, [row])
            bar.update()
