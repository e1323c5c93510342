"""Every row of answer_cases.tsv: a rule, a text as a JSON string, what it must give, and why."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from rewards.answer import ends_with_answer, extract_last, extract_tagged, parse_number

READ = {
    "number": parse_number,
    "element": lambda text: extract_tagged(f"<answer>{text}</answer>"),
    "tagged": extract_tagged,
    "last": extract_last,
}


def _rows() -> list[tuple[str, str, str, str]]:
    lines = Path(__file__).with_name("answer_cases.tsv").read_text(encoding="ascii").splitlines()
    cells = [line.split("\t") for line in lines[1:] if not line.startswith("#")]
    return [(rule, json.loads(text), expected, reason) for rule, text, expected, reason in cells]


ROWS = _rows()


@pytest.mark.parametrize(
    ("rule", "text", "expected", "reason"),
    ROWS,
    ids=[f"{rule}-{reason.replace(' ', '-')}" for rule, _, _, reason in ROWS],
)
def test_case(rule: str, text: str, expected: str, reason: str) -> None:
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
