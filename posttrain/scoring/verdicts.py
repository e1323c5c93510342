"""A judge's verdicts: requested over HTTP, kept as they come, and read again to resume."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge import ORDERS, Comparison, Order, Verdict, parse_verdict, question
from posttrain.base.errors import ConfigError, DataError
from posttrain.base.files import append_rows, cut_off_half_line, jsonl_rows, rows_of
from posttrain.base.progress import progress_bar
from posttrain.model.server import Ask, as_they_come
from posttrain.run.replies import claim
from posttrain.run.results import Answered, PromptReply

VERDICTS = "verdicts.jsonl"
Verdicts = dict[tuple[int, Order], Verdict | None]
"""The verdict on each comparison, by its index, in each order; None for one that cannot be read."""


def read_comparisons(run: Path) -> list[Comparison]:
    """The replies that a DPO run wrote before and after its training, prompt by prompt. Raises
    ConfigError where it wrote none, or the two sides do not belong together."""
    before, after = (_replies(run, side) for side in ("before", "after"))
    prompts = [[(r.system, r.earlier, r.prompt) for r in side] for side in (before, after)]
    if prompts[0] != prompts[1]:
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


def _conversation(reply: Answered) -> str:
    """The last user turn, below the turns that came before it, if any."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in reply.earlier]
    return "\n\n".join([*turns, f"user: {reply.prompt}"]) if turns else reply.prompt


def read_verdicts(path: Path) -> Verdicts:
    """The verdicts that an earlier call left, read again from the judge's replies."""
    if not path.exists():
        return {}
    cut_off_half_line(path)
    verdicts: Verdicts = {}
    for number, row in enumerate(jsonl_rows(path), start=1):
        try:
            verdicts[row["comparison"], row["order"]] = parse_verdict(row["reply"])
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: line {number} is not a verdict") from None
    return verdicts


def missing(comparisons: Sequence[Comparison], verdicts: Verdicts) -> list[tuple[int, Order]]:
    """What is still to be judged; identical replies are not."""
    return [
        (index, order)
        for index, each in enumerate(comparisons)
        for order in ORDERS
        if not each.identical and (index, order) not in verdicts
    ]


def judge_all(
    comparisons: Sequence[Comparison],
    verdicts: Verdicts,
    ask: Ask,
    folder: Path,
    request: dict[str, Any],
    at_once: int,
) -> None:
    """Request every verdict that is missing, `at_once` at a time; fills `verdicts` and the file.
    `request` has the language and the seed; the first verdict claims the folder for it. After an
    error nothing more is sent, but what is answered by then is kept."""
    todo, language, seed = missing(comparisons, verdicts), request["language"], request["seed"]
    requests = [(question(comparisons[index], order, language), seed) for index, order in todo]
    with progress_bar("judging", len(todo), leave=True) as bar:
        for number, reply in as_they_come(ask, requests, at_once):
            index, order = todo[number]
            verdict = verdicts[index, order] = parse_verdict(reply.text)
            if not (folder / "request.json").is_file():
                claim(folder, request)
            row = {"comparison": index, "order": order, "verdict": verdict, "reply": reply.text}
            append_rows(folder / VERDICTS, [row])
            bar.update()
