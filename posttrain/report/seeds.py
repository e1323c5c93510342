"""A config trained with several seeds: its table in the terminal, and its verdict in words.

What is told is read from seeds.json (posttrain/scoring/seeds.py says what is in it) and from the
seeds' own records.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.base import terminal
from posttrain.report.story import Change
from posttrain.report.tables import ruled
from posttrain.report.verdict import WORDS, Verdict
from posttrain.run import measures
from posttrain.run.record import Record

Found = Mapping[str, Any]
TONES = {1: "good", 0: "flat", -1: "bad"}


def in_order(found: Found, records: Sequence[Record]) -> dict[str, Found]:
    """The measures of seeds.json, the headline first, as it is in each seed's own record."""
    names = [name for name in records[0].measures() if name in found["measures"]]
    return {name: found["measures"][name] for name in names}


def table(found: Found, records: Sequence[Record]) -> str:
    """Each measure before and after, mean and standard deviation over seeds, and its change."""
    seeds = len(found["seeds"])
    head = (
        "measure",
        "before",
        "after",
        "95% over seeds",
        "change (95%, seeds and questions)",
        "p-value",
    )
    rows = [
        (
            measures.label(name),
            spread(name, values["before"]),
            spread(name, values["after"]),
            measures.interval(name, values["after"]),
            measures.change(name, as_compared(values)),
            measures.p_value(values["difference"]["p_value"]),
        )
        for name, values in in_order(found, records).items()
    ]
    lines = ruled([head, *rows])
    if not terminal.fits(lines):
        lines = []
        for label, before, after, within, change, p in rows:
            lines += [
                f"{label}",
                f"  {before} -> {after}, over seeds {within}",
                f"  {change}, p-value {p}",
            ]
    return "\n".join([f"{seeds} seeds, mean ± standard deviation", "", *lines])


def verdict(found: Found, records: Sequence[Record]) -> Verdict:
    """Did the config improve the headline measure, whatever the seed; and do the seeds agree?"""
    name, values = next(iter(in_order(found, records).items()))
    changed = as_compared(values)
    direction = measures.direction(name, changed)
    before, after = (measures.plain(name, values[side]["mean"]) for side in ("before", "after"))
    sentence = (
        f"{_capital(measures.label(name))} went from {before} to {after}, the mean of "
        f"{len(records)} seeds: {measures.moved(name, changed['difference'])} (95% interval over "
        f"seeds and questions {measures.span(name, changed)}, {measures.p_is(changed['p_value'])})."
    )
    return Verdict(
        tone=TONES[direction],
        word=WORDS[direction],
        sentence=sentence,
        measure=f"{measures.label(name)}, mean of {len(records)} seeds",
        before=before,
        after=after,
        change=measures.moved(name, changed["difference"]),
        remarks=[agreement(name, found, records), *_losses(name, found, records)],
    )


def agreement(name: str, found: Found, records: Sequence[Record]) -> str:
    """Whether each seed, taken for itself, says the same of a measure; and how far they differ."""
    said: dict[str, list[int]] = {}
    for seed, record in zip(found["seeds"], records, strict=True):
        word = WORDS[measures.direction(name, record.measures()[name])]
        said.setdefault(word, []).append(seed)
    changes = [record.measures()[name]["difference"] for record in records]
    low, high = (measures.moved(name, end) for end in (min(changes), max(changes)))
    ends = high if low == high else f"{measures.signed(name, min(changes))} to {high}"
    if len(said) > 1:
        parts = [f"{word} with {_listed(some)}" for word, some in said.items()]
        return f"The seeds disagree, each taken alone: {'; '.join(parts)} ({ends})."
    (word,) = said
    if word == WORDS[measures.direction(name, as_compared(found["measures"][name]))]:
        return f"The seeds agree, each taken alone: {word} ({ends})."
    return (
        f"Each seed taken alone says {word}, but they differ so much ({ends}) that "
        f"{len(records)} of them do not tell what another would bring; more seeds may."
    )


def lines_of(found: Found, records: Sequence[Record]) -> list[Change]:
    """The rows of the page's table of measures."""
    rows = []
    for name, values in in_order(found, records).items():
        changed, of = as_compared(values), name.rpartition("/")[0]
        rows.append(
            Change(
                of=measures.set_label(of) if of else "",
                name=measures.label(name.rpartition("/")[2]),
                n=f"{records[0].measures()[name].get('n')}, {len(records)} seeds",
                before=spread(name, values["before"]),
                before_interval=measures.interval(name, values["before"]),
                after=spread(name, values["after"]),
                after_interval=measures.interval(name, values["after"]),
                change=measures.moved(name, changed["difference"]),
                change_interval=measures.span(name, changed),
                p_value=measures.p_is(changed["p_value"]),
                tone={1: "good", 0: "", -1: "bad"}[measures.direction(name, changed)],
            )
        )
    return rows


def by_seed(found: Found, records: Sequence[Record]) -> list[list[str]]:
    """Rows of a table: a measure, and its value after training with each seed."""
    return [
        [
            _capital(measures.label(name)),
            *(measures.plain(name, each) for each in values["after"]["values"]),
        ]
        for name, values in in_order(found, records).items()
    ]


def _losses(headline: str, found: Found, records: Sequence[Record]) -> list[str]:
    """What got worse beyond chance, beside the headline."""
    return [
        f"Got worse: {measures.label(name)}, {measures.change(name, as_compared(values))}."
        for name, values in in_order(found, records).items()
        if name != headline and measures.direction(name, as_compared(values)) < 0
    ]


def as_compared(values: Found) -> dict[str, Any]:
    """The difference of seeds.json as a run's own comparison has it."""
    return {**values["difference"], "difference": values["difference"]["mean"]}


def spread(name: str, side: Found) -> str:
    """`98.6% ± 0.6`: mean and standard deviation, in points where it is a share."""
    sd = f"{100 * side['sd']:.1f}" if measures.is_share(name) else measures.plain(name, side["sd"])
    return f"{measures.plain(name, side['mean'])} ± {sd}"


def _listed(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
