"""Read a number from text, in English and French conventions: the NUMBER grammar.

    NUMBER    sign? (grouped | plain)
    sign      "+", "-" or U+2212
    plain     ASCII digits, then optionally "." or "," and digits       1234  007  1.5  1,5  0,125
    grouped   1 to 3 digits not starting with 0, then groups of three
              by ","  then optionally "." and digits                    1,234,567.89
              by one kind of space, then "." or "," and digits          1 234 567,89

The spaces that group are U+0020, U+00A0, U+202F and U+2009. A dot is always a decimal point, and
where a comma can group thousands it does: `1,234` is 1234, `1,5` is 1.5, `0,125` is 0.125. There
is neither exponent nor fraction, no `.5` or `5.`, and a NUMBER has at most 64 characters.

Every value is an exact `Decimal`, so `29.00` equals 29, `-0` equals 0 and `-3` never equals 3; no
arithmetic is done on it, so nothing is rounded. Every function here accepts any object (what is
not a string holds no number), never raises, and takes time linear in the length of the text.
"""

import re
from decimal import Decimal

OPEN, CLOSE = "<answer>", "</answer>"
MAX_LENGTH = 64

_SIGNS = "+\\-\u2212"  # as written inside a regular expression's brackets
_CURRENCIES = "$€£"
_GROUPING_SPACES = " \u00a0\u202f\u2009"
# Unicode's White_Space property. `str.strip()` would also drop the controls U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_IGNORED = _WHITE_SPACE + _CURRENCIES + "%"
# Latin letters only: Chinese and Japanese put no space between a word and a number.
_WORD = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f_"

_NUMBER = re.compile(
    rf"""[{_SIGNS}]?(?:
        (?P<commas>[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+)(?:\.[0-9]+)?
      | [1-9][0-9]{{0,2}}(?P<space>[{_GROUPING_SPACES}])[0-9]{{3}}(?:(?P=space)[0-9]{{3}})*
        (?:[.,][0-9]+)?
      | [0-9]+(?:[.,][0-9]+)?
    )""",
    re.VERBOSE,
)
_COMMAS_GROUP = str.maketrans({",": None, "\u2212": "-"})
_COMMA_IS_DECIMAL = str.maketrans({**dict.fromkeys(_GROUPING_SPACES), ",": ".", "\u2212": "-"})

# What stands between digits that are one number or none: in 1'000 and 70~000 too.
_JOINTS = ".,'\u2019~"
# Everything in free text that might be one number, read as one so that no part of a malformed one
# is read (1.234.567 is not 567). Possessive, and each part after the first digit may be absent:
# the search never goes back over what it has passed, which is what keeps it linear.
_RUN = re.compile(
    rf"""\d(?<![{_WORD}.^\d]\d)(?<!\d[{_JOINTS}]\d)(?<![\^_]\{{\d)
    (?<!\^[{_SIGNS}]\d)(?<!\^\{{[{_SIGNS}]\d)
    (?: (?<=[1-9])[0-9]{{0,2}}(?P<space>[{_GROUPING_SPACES}])[0-9]{{3}}(?!\d)
        (?:(?P=space)[0-9]{{3}}(?!\d))*+
      | \d*+
    )
    (?:[{_JOINTS}]\d++)*+
    (?P<inside_word>[eE][{_SIGNS}]?\d|[{_WORD}]++\d)?""",
    re.VERBOSE,
)
# A sign, where what stands before it cannot be an operand: in 3-2, (1)-2 and 5€-2€ it subtracts.
_SIGN = re.compile(rf"(?<![{_WORD}\d)\]}}%{_SIGNS}])(?<!\d[{_CURRENCIES}])[{_SIGNS}]")
# LaTeX that is typeset as part of a number, and the characters that the grammar has for it.
_LATEX = {
    "\\!": "",
    "{,}": ",",
    "{.}": ".",
    "{\\,}": "\u2009",
    **dict.fromkeys(("\\,", "\\:", "\\;", "\\ "), "\u2009"),
    "\\$": "$",
}


def parse_number(text: object) -> Decimal | None:
    """The value of `text` if it is exactly a NUMBER, with nothing around it; else None."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    grouped_by_commas = match["commas"] is not None
    return Decimal(text.translate(_COMMAS_GROUP if grouped_by_commas else _COMMA_IS_DECIMAL))


def extract_tagged(text: object) -> Decimal | None:
    """The number in the text's one `<answer>` element, wherever it stands; else None.

    One element: exactly one `<answer>` and one `</answer>` in the text, in that order. A tag
    that is nested, unclosed, repeated or only quoted counts as a tag, so the text extracts nothing.
    Tolerance: white space and `$ € £ %` around the number, one final full stop, and one currency
    sign after the sign (`-$5`) are ignored; a percentage is not divided (`18%` is 18).
    """
    if not isinstance(text, str) or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    content = text[text.index(OPEN) + len(OPEN) : text.index(CLOSE)]  # empty if in the wrong order
    content = content.strip(_IGNORED).removesuffix(".").rstrip(_IGNORED)
    if content[1:2] and content[1] in _CURRENCIES and _SIGN.match(content):
        content = content[0] + content[2:]
    return parse_number(content)


def extract_last(text: object) -> Decimal | None:
    r"""The last NUMBER in free text, tagged or not; None where there is none.

    Numbers are read from left to right, each as long as the grammar allows (`page 1 234` ends in
    1234; `5, 6` in 6; `12/04` in 4), with currencies and percent signs ignored.
    - Digits joined by `.`, `,`, an apostrophe or `~` are one number or none: `1.234.567`, `1,2,3`,
      the Swiss `1'000'000`, `70~000` (in LaTeX a space, elsewhere a range) and `.5` are none.
    - LaTeX's separators are read as typeset: `70{,}000`, `70\,000` and `70,\!000` are 70000,
      `3{,}5` and `3{.}5` are 3.5, `-\$5` is -5. Inside `<answer>` they make no NUMBER.
    - In a word, only digits that open it and stand alone in it count: `5kg` is 5, while `H2O`,
      `x2`, `3x4` and `1e3` hold none; nor is a power (`cm^2`, `cm^{2}`) or an index a number.
    - A sign belongs to the number it touches (`x = -3`, `-$3`), unless it touches a digit, a word,
      a closing bracket, a percent or another sign before it: `3-2` ends in 2, not in -2.
    """
    if not isinstance(text, str):
        return None
    for written, typeset in _LATEX.items():
        text = text.replace(written, typeset)
    end = len(text)
    while end > 0:  # line by line from the last one: no number crosses a line feed
        start = text.rfind("\n", 0, end) + 1
        last = None
        for run in _RUN.finditer(text, start, end):
            value = _read(text, run)
            last = last if value is None else value
        if last is not None:
            return last
        end = start - 1
    return None


def ends_with_answer(text: object) -> bool:
    """Whether the last line, trailing white space dropped, is exactly `<answer>NUMBER</answer>`: no
    white space before the element, and no tolerance inside it. Lines end at a line feed."""
    if not isinstance(text, str):
        return False
    line = text.rstrip(_WHITE_SPACE).rpartition("\n")[2]
    if not (line.startswith(OPEN) and line.endswith(CLOSE)):
        return False
    return parse_number(line[len(OPEN) : -len(CLOSE)]) is not None


def count_answer_elements(text: object) -> int:
    """How many `<answer>` tags the text opens, closed or not: 1 in a sound completion."""
    return text.count(OPEN) if isinstance(text, str) else 0


def _read(text: str, run: re.Match[str]) -> Decimal | None:
    """The value of a run of digits with the sign before it, None if it is not a NUMBER."""
    start, end = run.span()
    if run["inside_word"] is not None:
        return None
    at = start - 1
    if at > 0 and text[at] in _CURRENCIES:
        at -= 1
    sign = text[at] if at >= 0 and _SIGN.match(text, at) else ""
    return parse_number(sign + text[start:end])
