"""Properties of the grammar and the rewards over generated strings."""

import re
from decimal import Decimal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.answer import (
    count_answer_elements,
    ends_with_answer,
    extract_last,
    extract_tagged,
    parse_number,
)
from rewards.gsm8k import correctness_reward, format_reward

SPACES = " \u00a0\u202f\u2009"
SIGNS = "+-\u2212"


def examples(count: int) -> settings:
    """The same `count` examples on every machine; none kept on disk, no limit on time."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None)


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Decimal]:
    """A NUMBER of at most 64 characters in one of the grammar's conventions, and its value."""
    complete = draw(st.integers(0, 10**15) | st.integers(0, 9999))
    fraction = draw(st.from_regex(r"[0-9]{0,12}", fullmatch=True))
    sign = draw(st.sampled_from(["", *SIGNS]))
    separator = draw(st.sampled_from(["", ",", *SPACES]))
    point = draw(st.sampled_from([".", ","]))
    text = f"{complete:,}".replace(",", separator)
    grouped = text if separator and complete > 999 else ""
    if grouped and separator == ",":
        point = "."  # a comma does not both group and mark the decimals
    if not grouped and 0 < complete < 1000 and len(fraction) == 3:
        point = "."  # a comma would group
    value = Decimal(f"{complete}.{fraction}") if fraction else Decimal(complete)
    negative = sign not in ("", "+")
    return sign + text + (point + fraction if fraction else ""), -value if negative else value


@given(written())
@examples(600)
def test_every_convention_is_read(number: tuple[str, Decimal]) -> None:
    text, value = number
    assert parse_number(text) == value
    assert extract_tagged(f"<answer>{text}</answer>") == value
    assert extract_last(text) == value
    assert ends_with_answer(f"<answer>{text}</answer>")


def reference(text: str) -> Decimal | None:
    """The grammar again, by counting instead of by regular expression."""
    if len(text) > 64:
        return None
    sign, body = (text[0], text[1:]) if text[:1] and text[0] in SIGNS else ("", text)
    if not body or any(c not in "0123456789.," + SPACES for c in body):
        return None
    if body.count(".") > 1:
        return None
    complete, dot, fraction = body.partition(".")
    if not dot and body.count(",") == 1:
        left, right = body.split(",")
        groups = 1 <= len(left) <= 3 and left.isdigit() and left[0] != "0" and len(right) == 3
        if not groups:
            complete, dot, fraction = left, ".", right
    if dot and not fraction.isdigit():
        return None
    separators = {c for c in complete if not c.isdigit()}
    if len(separators) > 1:
        return None
    if separators:
        first, *others = complete.split(separators.pop())
        if not first.isdigit() or len(first) > 3 or first[0] == "0":
            return None
        if any(len(group) != 3 or not group.isdigit() for group in others):
            return None
        complete = "".join([first, *others])
    if not complete.isdigit():
        return None
    return Decimal(("-" if sign and sign != "+" else "") + complete + (dot and "." + fraction))


@given(st.text("0123,. \u202f-", max_size=14) | st.text("017,.-+\u2212\u00a0x", max_size=9))
@examples(1000)
@example("1,234,5")
@example("0,125")
@example("1 234,567")
def test_an_independent_reading_agrees(text: str) -> None:
    assert parse_number(text) == reference(text)


TAGS = ["<answer>", "</answer>", "<answer>72</answer>", "<ANSWER>"]
NUMBERS = ["72", "72 $.", "-3", "1,234", "1\u202f234,5", "1e3", "inf", "6*7", "\uff17"]
SCRAPS = ["so", ".", "%", "**", " ", "\n", "\x00", "\ud800"]
PIECES = st.sampled_from(TAGS + NUMBERS + SCRAPS)
ANY_TEXT = (
    st.lists(PIECES, max_size=10).map("".join)
    | st.text(max_size=40)
    | st.from_regex(r"(so|\n| )*<answer>[ $]?-?[0-9,. ]{0,6}[.%]?</answer>\s*", fullmatch=True)
)


@given(ANY_TEXT, st.sampled_from(["72", "-3", "1,234", "1234.5", "0"]) | st.text(max_size=5))
@examples(800)
def test_rewards_on_any_text(text: str, gold: str) -> None:
    (form,) = format_reward([text], answer=[gold])
    (right,) = correctness_reward([text], answer=[gold])
    assert form in (0.0, 1.0)
    if parse_number(gold) is None:
        assert right is None
    else:
        assert right is not None
        assert right in (0.0, 2.0)
        assert form + right in (0, 1, 2, 3)
    as_messages = [[{"role": "assistant", "content": text}]]
    assert format_reward(as_messages) == [form]
    assert correctness_reward(as_messages, answer=[gold]) == [right]


@given(ANY_TEXT)
@examples(500)
def test_what_is_extracted_was_written(text: str) -> None:
    tagged, last = extract_tagged(text), extract_last(text)
    if tagged is not None:
        assert count_answer_elements(text) == text.count("</answer>") == 1
        assert last is not None  # so `lenient` never knows less than `tagged`
    for value in (tagged, last):
        if value is not None:
            digits = re.sub(r"[^0-9]", "", str(value))
            assert digits in re.sub(r"[^0-9]", "", text)
    if ends_with_answer(text) and text.count("<answer>") == text.count("</answer>") == 1:
        assert tagged is not None  # a sound format is always readable
