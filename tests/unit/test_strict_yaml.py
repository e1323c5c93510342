"""Reading YAML strictly: numbers, text, duplicate keys, and errors that name file and line."""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.settings.strict_yaml import dump_yaml, parse_yaml, read_yaml
from tests.unit.conftest import write_file


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["5e-6", "5.0E-6"], 5e-6),
        (["1.e5"], 1e5),
        (["-2e+3"], -2000.0),
        (["-.5"], -0.5),
        ([".5e1"], 5.0),
        (["1."], 1.0),
        (["-3"], -3),
        (["+3"], 3),
        (["1_000"], 1000),
        (["010"], 10),
        (["true", "True", "TRUE", "yes", "on"], True),
        (["false", "False", "FALSE", "no", "off"], False),
        (["null", "Null", "~", ""], None),
        (["[5e-6, text, {c: 1e-3}]"], [5e-6, "text", {"c": 1e-3}]),
        # The same key in two sections is not given twice.
        (["b: {x: 'é'}\nc: [{x: 1}, {x: {}}]"], {"b": {"x": "é"}, "c": [{"x": 1}, {"x": {}}]}),
    ],
)
def test_values(texts: list[str], value: Any) -> None:
    for text in texts:
        read = parse_yaml(text, "here")
        assert (type(read), repr(read)) == (type(value), repr(value)), text


@pytest.mark.parametrize(
    "text",
    [
        *("q_proj", "1.2.3", "5e-6x", "e5", "1e", "1e-", "--3", "+", "é", "1:30", "12:30:45"),
        # Dates are text: no setting is a date, and an impossible one must not end in a traceback.
        *("2024-01-01", "2024-13-45", "2024_11_", "1__0"),
    ],
)
def test_plain_text(text: str) -> None:
    assert parse_yaml(text, "here") == text


@pytest.mark.parametrize(
    "text",
    [
        *("5e-6", "3", "yes", "null", "", " a ", "1:30", "9" * 5000),
        *("09_12", "08_", "08", "010", "1_000"),
    ],
)
def test_text_that_is_quoted_or_dumped_stays_text(text: str) -> None:
    assert parse_yaml(f"'{text}'", "here") == parse_yaml(f'"{text}"', "here") == text
    assert parse_yaml(dump_yaml({"name": text}), "here") == {"name": text}


@pytest.mark.parametrize(
    ("text", "key", "second", "first"),
    [
        ("a:\n  b:\n    c: {d: 1}\n    c: {d: 1}\n", "c", 4, 3),
        ("x: 1\na: {b: 1, c: 2, b: 3}\n", "b", 2, 2),
        ("a:\n  - b: 1\n    b: 2\n", "b", 3, 2),
        ("a: 1\n'a': 2\n", "a", 2, 1),
    ],
)
def test_a_duplicate_key_names_both_lines(text: str, key: str, second: int, first: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "some.yaml")
    assert str(caught.value) == (
        f"some.yaml: line {second}: the key '{key}' is given twice (first on line {first}); "
        "keep one"
    )


@pytest.mark.parametrize("key", ["1", "yes", "[a]"])
def test_a_key_that_is_not_text(key: str) -> None:
    with pytest.raises(ConfigError, match=r"^some\.yaml: line 2: the key .* is not text; quote it"):
        parse_yaml(f"a: 1\n? {key}\n: 2\n", "some.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2\n", 2),
        ("a: 1\nb: c: d\n", 2),
        ("a:\n\tb: 1\n", 2),
        ("a: *nothing\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: !!python/object/apply:os.getcwd []\n", 2),
        *((f"a: 1\nb: {value}\n", 2) for value in ("!!int abc", "!!bool abc", "9" * 5000)),
        *((f"a: 1\nb: {value}\n", 2) for value in ("!!timestamp abc", "&x [*x]", "&x {b: *x}")),
    ],
)
def test_bad_syntax_names_the_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"^some\.yaml: line {line}: not valid YAML") as caught:
        parse_yaml(text, "some.yaml")
    assert caught.value.exit_code == 2 and caught.value.__suppress_context__
    for character in ("\x00", "\x1b"):
        with pytest.raises(ConfigError, match=r"^some\.yaml: .*not valid YAML"):
            parse_yaml(f"{text}{character}", "some.yaml")


@pytest.mark.parametrize(
    ("content", "tree"),
    [
        *((text, {}) for text in ("", "# nothing but a comment\n", "null\n")),
        ("\ufeffa: é\nb: 1\n", {"a": "é", "b": 1}),  # a byte order mark
        ("a: é\r\nb: 1\r\n", {"a": "é", "b": 1}),
    ],
)
def test_files_from_any_system(content: str, tree: dict[str, Any], tmp_path: Path) -> None:
    assert read_yaml(write_file(tmp_path / "some.yaml", content)) == tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "PATH: expected sections at the top, got a list"),
        ("text\n", "PATH: expected sections at the top, got text"),
        ("a: " + "[" * 5000, "PATH: lists or sections inside of others are too deep"),
        (b"a: 1\nb: \xff\n", "cannot read the config file .*PATH.*utf-8"),
        (None, "no config file at 'PATH'"),
    ],
)
def test_unusable_files(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    if content is not None:
        write_file(path, content)
    with pytest.raises(ConfigError, match=f"^{message.replace('PATH', re.escape(str(path)))}"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=f"cannot read the config file .*{tmp_path}"):
        read_yaml(tmp_path)
