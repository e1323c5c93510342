"""rewards.answer on every row of answer_cases.tsv, and on what no table can hold: odd types,
exactness, hostile sizes, real data."""

import csv
import json
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Context, Decimal, localcontext
from pathlib import Path

import pytest

from rewards.answer import (
    count_answer_elements,
    ends_with_answer,
    extract_last,
    extract_tagged,
    parse_number,
)
from rewards.gsm8k import correctness_reward, format_reward
from tests.helpers import SHARED, needs_shared

NUMBERS: list[Callable[[object], object]] = [parse_number, extract_tagged, extract_last]
READERS = [*NUMBERS, ends_with_answer, count_answer_elements]
READ = {
    "number": parse_number,
    "element": lambda text: extract_tagged(f"<answer>{text}</answer>"),
    "tagged": extract_tagged,
    "last": extract_last,
}


def table() -> Iterator[tuple[str, str, str, str]]:
    """A rule, a text as a JSON string, what it must give, and why."""
    lines = Path(__file__).with_name("answer_cases.tsv").read_text(encoding="ascii").splitlines()
    for line in lines[1:]:
        if not line.startswith("#"):
            rule, text, expected, reason = line.split("\t")
            yield rule, json.loads(text), expected, reason


ROWS = list(table())


@pytest.mark.parametrize(
    ("rule", "text", "expected", "reason"),
    ROWS,
    ids=[f"{rule}-{reason.replace(' ', '-')}" for rule, _, _, reason in ROWS],
)
def test_a_row_of_the_table(rule: str, text: str, expected: str, reason: str) -> None:
    if rule == "format":
        assert expected in ("yes", "no")
        assert ends_with_answer(text) is (expected == "yes"), reason
    else:
        assert READ[rule](text) == (None if expected == "-" else Decimal(expected)), reason


def test_the_table_is_sound() -> None:
    assert len(ROWS) >= 120
    assert set(READ) | {"format"} == {rule for rule, *_ in ROWS}
    assert all(reason.strip() for *_, reason in ROWS)
    assert len({(rule, text) for rule, text, *_ in ROWS}) == len(ROWS)


@pytest.mark.parametrize("thing", [None, 72, 7.2, True, b"72", [], ["72"], {}, object()])
def test_what_is_not_text_holds_no_number(thing: object) -> None:
    assert [read(thing) for read in NUMBERS] == [None] * 3
    assert ends_with_answer(thing) is False
    assert count_answer_elements(thing) == 0


def test_values_are_decimals_untouched_by_the_context() -> None:
    assert parse_number("9007199254740993") != parse_number("9007199254740992")  # as floats
    assert parse_number("0.1") != parse_number("0.1000000000000000055511151231257827")
    text = "1234567890123456789012345678901234567890.123456789"
    with localcontext(Context(prec=3, traps=[])):
        written = (text, f"<answer>-{text}</answer>", f"it is {text}.")
        for read, form in zip(NUMBERS, written, strict=True):
            value = read(form)
            assert type(value) is Decimal
            assert str(value).removeprefix("-") == text


def test_opened_elements_are_counted() -> None:
    texts = ("none </answer>", "<answer>1</answer>", "<answer><answer>1</answer> and <answer>2")
    assert [count_answer_elements(text) for text in texts] == [0, 1, 3]


HOSTILE = [
    *("1", "\u0663", "<answer>", "<answer>1</answer>", " ", "\n", ",", "1,", "1.", "1 ", " 111"),
    *("1 111 1.1.1 ", "-", "$", "-$1", "1aaaaaaaaaaaaaaaa", "a1", "1e", "{,}111", "111\\,", "^{1"),
    *("1'", "\ud800", "1 111,1.-$<answer>\u202f\n"),
]


def _inputs(piece: str, size: int) -> Iterator[str]:
    body = piece * (size // len(piece))
    yield body
    yield f"<answer>{body}</answer>"
    yield f"{body}<answer>1</answer>{body}"
    yield f"1{body}x"


@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
def test_time_is_linear(piece: str) -> None:
    """Quadratic time would take minutes for each of these."""
    for text in _inputs(piece, 100_000):
        for read in READERS:
            read(text)


@pytest.mark.parametrize("piece", ["1", "1,", " 111", "1{,}", "<answer>", " ", "-$1 \n"])
def test_memory_is_bounded_by_the_text(piece: str) -> None:
    """At most three copies: the element's content, and that content as it is trimmed."""
    size = 1_000_000
    for text in _inputs(piece, size):
        tracemalloc.start()
        try:
            for read in READERS:
                read(text)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3.2 * len(text) + 100_000


def _gsm8k() -> Iterator[tuple[str, str]]:
    for name in ("train", "test"):
        with (SHARED / "gsm8k" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                reasoning, gold = json.loads(line)["answer"].split("\n#### ")
                yield reasoning, gold


def _mgsm() -> Iterator[tuple[str, str]]:
    with (SHARED / "mgsm" / "mgsm_fr.tsv").open(encoding="utf-8", newline="") as lines:
        yield from csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


@needs_shared
@pytest.mark.parametrize(("rows", "count"), [(_gsm8k, 8792), (_mgsm, 250)])
def test_every_gold_answer_parses_and_earns_full_reward(
    rows: Callable[[], Iterator[tuple[str, str]]], count: int
) -> None:
    pairs = list(rows())
    golds = [gold for _, gold in pairs]
    values = [parse_number(gold) for gold in golds]
    assert len(pairs) == count
    assert values == [Decimal(gold.replace(",", "")) for gold in golds]

    completions = [f"{reasoning}\n<answer>{gold}</answer>" for reasoning, gold in pairs]
    form = format_reward(completions, answer=golds)
    right = correctness_reward(completions, answer=golds)
    assert {(f, r) for f, r in zip(form, right, strict=True)} == {(1.0, 2.0)}

    wrong = [
        f"{reasoning}\n<answer>{value - 1 if value else 1}</answer>"
        for (reasoning, _), value in zip(pairs, values, strict=True)
    ]
    assert set(correctness_reward(wrong, answer=golds)) == {0.0}

    untagged = [f"{reasoning}\n#### {gold}" for reasoning, gold in pairs]
    assert [extract_last(text) for text in untagged] == values
    assert set(correctness_reward(untagged, answer=golds)) == {0.0}
