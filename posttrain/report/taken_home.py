"""What a run leaves to take home: the adapter and every file that was scored, a row each."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.base import terminal
from posttrain.report import export_words
from posttrain.report.tables import ruled
from posttrain.run import measures
from posttrain.run.record import Record, Row, figures, number, section

ON_16_BIT = "adapter on 16-bit weights"
LANGUAGES = ("french_share", "language_share")
ALPHA = 0.05


@dataclass(frozen=True)
class Line:
    """One row of the table, every cell as text."""

    name: str
    value: str
    interval: str
    whole: str
    """The value with its interval."""
    rest: tuple[str, ...]
    """The cells below the other columns."""
    tone: str = ""
    """`bad` where it lost significantly, else empty."""


def columns(record: Record) -> tuple[str, ...]:
    """The heads of the columns; the last is for DPO alone."""
    main, language = _measures(record)
    head = ("file", measures.label(main), "gained / lost", "p-value", "size", "tokens/s")
    return (*head, measures.label(language)) if language else head


def lines(record: Record) -> list[Line]:
    """The adapter, then what was scored; none where nothing was."""
    scored = _scored(record)
    if not scored:
        return []
    weights = record.path / "adapter" / "adapter_model.safetensors"
    size = _size(weights.stat().st_size if weights.is_file() else None)
    found = [_line(record, "adapter", record.after, ("-", "-", size, "-"))]
    for name, score in scored.items():
        speed = number(score.get("tokens_per_second"))
        rest = (
            f"+{score.get('gained')} / -{score.get('lost')}",
            measures.p_value(number(score.get("p_value"))),
            size
            if name == ON_16_BIT
            else _size(number(section(record.exports, name).get("bytes"))),
            f"{speed:,.0f}" if speed else "-",
        )
        of_file = figures(section(score, "measures"))
        own = name if name == ON_16_BIT or _proven(record, name) else f"{name} (not proven)"
        found.append(_line(record, own, of_file, rest, "bad" if _lost(score) else ""))
    return found


def _line(
    record: Record, name: str, found: Mapping[str, Row], rest: tuple[str, ...], tone: str = ""
) -> Line:
    main, language = _measures(record)
    if language:
        rest = (*rest, measures.plain(language, found.get(language, {}).get("value")))
    own = found.get(main, {})
    plain, whole = measures.plain(main, own.get("value")), measures.value(main, own)
    return Line(name, plain, measures.interval(main, own), whole, rest, tone)


def _measures(record: Record) -> tuple[str, str]:
    """The measure that files are judged by, and that of the replies' language in DPO, else ""."""
    main = next((str(score["main"]) for score in _scored(record).values()), "")
    return main, next((name for name in LANGUAGES if name in record.after and name != main), "")


def _size(count: float | None) -> str:
    return export_words.size(count) if count else "-"


def words(record: Record) -> list[str]:
    """A sentence on each file that lost significantly, and on what 4-bit training cost."""
    scored = _scored(record)
    files = {name: score for name, score in scored.items() if name != ON_16_BIT}
    sound = [name for name, s in files.items() if not _lost(s) and _proven(record, name)]
    sound.sort(key=lambda name: number(section(record.exports, name).get("bytes")) or 0.0)
    said = []
    for name, score in files.items():
        if _lost(score):
            take = f"take {_short(sound[0])}" if sound else "no proven file is as good as it"
            said.append(f"{_short(name)} {_losses(record, score)}; {take}.")
        for measure in _worse(score):
            change = measures.change(measure, score["against_adapter"][measure])
            said.append(f"{_short(name)}: {measures.label(measure)} got worse, {change}.")
    if ON_16_BIT in scored and _lost(scored[ON_16_BIT]):
        said.append(
            f"On 16-bit weights the adapter {_losses(record, scored[ON_16_BIT])} on the 4-bit "
            "weights that it was trained on, and every file inherits that."
        )
    return said


def no_file_lost(record: Record) -> str:
    """That none of the files that were scored lost significantly; empty where one did."""
    files = [score for name, score in _scored(record).items() if name != ON_16_BIT]
    if not files or any(map(_lost, files)):
        return ""
    return "No file lost significantly against the adapter (p < 0.05)."


def text(record: Record) -> str:
    """Table and words for the terminal; empty where nothing was scored."""
    found = lines(record)
    if not found:
        return ""
    rows = [columns(record), *(cells(line) for line in found)]
    table = ruled(rows)
    if not terminal.fits(table):
        table = []
        for row in rows[1:]:
            told = zip(rows[0][1:], row[1:], strict=True)
            said = ", ".join(f"{head} {cell}" for head, cell in told if cell != "-")
            wrap = textwrap.TextWrapper(terminal.width(), "  ", subsequent_indent="    ")
            table += [row[0], *wrap.wrap(said)]
    sentences = filter(None, (no_file_lost(record), *words(record)))
    remarks = [textwrap.fill(sentence, terminal.prose_width()) for sentence in sentences]
    return "\n".join(["What you take home", *table, *remarks])


def cells(line: Line) -> tuple[str, ...]:
    """A row below `columns`."""
    return (line.name, line.whole, *line.rest)


def _scored(record: Record) -> dict[str, Row]:
    """What was scored by its name, the adapter on 16-bit weights first. Of a file that was made
    from other weights since, nothing is known."""
    entries = {ON_16_BIT: record.adapter_16bit, **record.exports}
    fresh = {name: e for name, e in entries.items() if isinstance(e, dict) and not e.get("stale")}
    scores = {name: section(entry, "score") for name, entry in fresh.items()}
    return {name: score for name, score in scores.items() if "main" in score}


def _proven(record: Record, name: str) -> bool:
    """Whether a file passed its parity checks."""
    return bool(section(record.exports, name).get("proven"))


def _lost(score: Row) -> bool:
    """Whether a file is worse than the adapter, and not by chance."""
    main, p = str(score.get("main")), number(score.get("p_value"))
    change = number(section(section(score, "against_adapter"), main).get("difference"))
    return change is not None and change < 0 and p is not None and p < ALPHA


def _worse(score: Row) -> list[str]:
    """The other measures that got worse beyond chance. On problems strict says it all."""
    return [
        name
        for name, change in figures(section(score, "against_adapter")).items()
        if score.get("main") in ("reward_accuracy", *LANGUAGES)
        and name != score["main"]
        and measures.direction(name, change) < 0
    ]


def _losses(record: Record, score: Row) -> str:
    """`lost 12 of 296 questions that the adapter answers`."""
    lost, gained, right = score.get("lost"), score.get("gained"), score.get("right")
    if right is None:
        return f"earns less than the adapter on {lost} of {score.get('n')} questions"
    what = {
        "reward_accuracy": "pairs that the adapter orders right",
        **dict.fromkeys(LANGUAGES, "prompts that the adapter answers in the language"),
    }.get(str(score.get("main")), "questions that the adapter answers")
    return f"lost {lost} of {right} {what}" + (f" (and gained {gained})" if gained else "")


def _short(name: str) -> str:
    return name.removeprefix("gguf:")
