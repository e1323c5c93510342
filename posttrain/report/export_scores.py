"""The adapter and every exported file that was scored, a row each, and which of them lost."""

import textwrap
from collections.abc import Mapping

from eval import figures
from eval.measures import direction, kind
from eval.stats import Difference, Measure
from posttrain.base import terminal
from posttrain.report import tables
from posttrain.report.export_words import size
from posttrain.report.tables import Cell, Column, Row, Table
from posttrain.run.record import Run
from posttrain.run.results import FileScore

TITLE = "Scores of the exported files"
ON_16_BIT = "adapter on 16-bit weights"
LANGUAGES = ("french_share", "language_share")
ALPHA = 0.05


def rows(run: Run) -> Table:
    """The adapter, then what was scored; no row where nothing was."""
    scores = _scores(run)
    main = next((score.main for score in scores.values()), "")
    language = next((name for name in LANGUAGES if name in run.after and name != main), "")
    heads = ["file", figures.label(main), "gained / lost", "p-value", "size", "tokens/s"]
    heads += [figures.label(language)] if language else []

    def row(name: str, measured: Mapping[str, Measure], *cells: str, tone: str = "") -> Row:
        own = tables.score(main, measured.get(main, Measure()))
        if language:
            cells = (*cells, figures.plain(language, measured.get(language, Measure()).value))
        return Row(name, (Cell(own.text, own.full, own.small, tone), *map(Cell, cells)))

    adapter = run.path / "adapter" / "adapter_model.safetensors"
    own_size = size(adapter.stat().st_size if adapter.is_file() else None)
    lines = [row("adapter", run.after, "-", "-", own_size, "-")] if scores else []
    for name, score in scores.items():
        file = run.exports.get(name)
        speed = score.tokens_per_second
        lines.append(
            row(
                name if file is None or file.proven else f"{name} (not proven)",
                score.measures,
                f"+{score.gained} / -{score.lost}",
                figures.p_value(score.p_value),
                own_size if file is None else size(file.bytes),
                f"{speed:,.0f}" if speed else "-",
                tone="bad" if _lost(score) else "",
            )
        )
    return Table(tuple(map(Column, heads)), lines, capitals=False)


def remarks(run: Run) -> list[str]:
    """A sentence on each file that lost significantly, and on what 4-bit training cost."""
    scores = _scores(run)
    on_16_bit = scores.pop(ON_16_BIT, None)
    sound = [
        name
        for name, score in scores.items()
        if not (_lost(score) or _worse(score)) and run.exports[name].proven
    ]
    smallest = min(sound, key=lambda name: run.exports[name].bytes or 0.0, default=None)
    use = f"use {smallest.removeprefix('gguf:')}" if smallest else "no proven file is as good as it"
    sentences = []
    for name, score in scores.items():
        short = name.removeprefix("gguf:")
        if _lost(score):
            sentences.append(f"{short} {_losses(run, score)}; {use}.")
        sentences += [
            f"{short}: {figures.label(other)} got worse, {figures.change(other, change)}."
            for other, change in _worse(score)
        ]
    if on_16_bit and _lost(on_16_bit):
        sentences.append(
            f"On 16-bit weights the adapter {_losses(run, on_16_bit)} on the 4-bit weights that it "
            "was trained on, and every file inherits that."
        )
    return sentences


def no_file_lost(run: Run) -> list[str]:
    """That none of the files that were scored lost significantly; empty where one did."""
    files = [score for name, score in _scores(run).items() if name != ON_16_BIT]
    if not files or any(_lost(score) or _worse(score) for score in files):
        return []
    return ["No file lost significantly against the adapter (p < 0.05)."]


def text(run: Run) -> str:
    """Table and remarks for the terminal; empty where nothing was scored."""
    table = rows(run)
    if not table.rows:
        return ""
    sentences = [*no_file_lost(run), *remarks(run)]
    lines = [textwrap.fill(sentence, terminal.prose_width()) for sentence in sentences]
    return "\n".join([TITLE, tables.as_text([table]), *lines])


def _scores(run: Run) -> dict[str, FileScore]:
    """What was scored by its name, the adapter on 16-bit weights first. Of a file that was made
    from other weights since, nothing is known."""
    entries = {ON_16_BIT: run.adapter_16bit, **run.exports}
    return {
        name: entry.score
        for name, entry in entries.items()
        if entry.score and entry.score.main and not entry.stale
    }


def _lost(score: FileScore) -> bool:
    """Whether a file is worse than the adapter, and not by chance."""
    change = score.against_adapter.get(score.main)
    if change is None or change.difference is None or score.p_value is None:
        return False
    return change.difference < 0 and score.p_value < ALPHA


def _worse(score: FileScore) -> list[tuple[str, Difference]]:
    """The other measures of replies to prompts that got worse; on problems the main one is all."""
    if kind(score.main).of == "problems":
        return []
    others = [
        (name, change) for name, change in score.against_adapter.items() if name != score.main
    ]
    return [(name, change) for name, change in others if direction(name, change) < 0]


def _losses(run: Run, score: FileScore) -> str:
    """`lost 12 of 296 questions that the adapter answers`."""
    if score.right is None:
        return f"earns less than the adapter on {score.lost} of {score.n} questions"
    right = "questions that the adapter answers"
    if run.method == "DPO":
        right = "prompts that the adapter answers in the right language"
    gained = f" (and gained {score.gained})" * bool(score.gained)
    return f"lost {score.lost} of {score.right} {right}{gained}"
