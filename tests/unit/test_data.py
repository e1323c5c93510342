"""Datasets: what is refused and how it is said, what is read, held out, dropped and counted."""

import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from eval import PromptFormat, conversation
from eval.gsm8k import Problem
from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.base.files import fingerprint
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import for_validation, load_problems, seen_in_training
from posttrain.data.prompted import prompt_key
from posttrain.data.render import drop_overlong
from posttrain.data.sources import read_rows
from posttrain.data.text import set_aside
from posttrain.scoring import evaluation as scored
from posttrain.settings import PairColumns, PairData, ProblemColumns, ProblemData, Prompt, Source
from rewards.answer import parse_number
from tests.helpers import ROOT, SHARED, Capsys, demo_settings, needs_shared
from tests.unit.conftest import Ask, write_file
from tests.unit.test_pair_report import pair

Rows = list[dict[str, Any]]

PAIR = {"prompt": "Bonjour ?", "chosen": "Oui.", "rejected": "Yes."}
PROBLEM = {"question": "1 + 1 ?", "answer": "One and one.\n#### 2"}
HELD_OUT = {"question": "Two and two?", "answer": "4"}


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def pairs_of(path: Path, holdout: int = 1, **columns: str) -> tuple[list[Pair], list[Pair]]:
    data = PairData(train=Source(path=str(path)), holdout=holdout, columns=PairColumns(**columns))
    pairs = load_pair_set(data, Prompt(system="Réponds."))
    return pairs.train, pairs.held_out


def problems_of(path: Path, evaluation: Path | None = None) -> tuple[list[Problem], list[Problem]]:
    if evaluation is None:
        evaluation = write_file(path.parent / "held_out.jsonl", jsonl(HELD_OUT))
    return load_problems(
        ProblemData(train=Source(path=str(path)), eval=Source(path=str(evaluation)))
    )


@dataclass(frozen=True)
class Bad:
    """A file that cannot be used, and what its error must say besides the file's name."""

    name: str
    content: str | bytes
    says: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.content[:48]!r}"


def bad_row(says: Sequence[str], **changes: Any) -> Bad:
    rows = [PAIR, {**PAIR, "prompt": "b", **changes}, {**PAIR, "prompt": "c"}]
    return Bad("pairs.jsonl", jsonl(*rows), ("row 2", *says))


TEXT_WANTED = "should hold text"
UNREADABLE = [
    # nothing in it
    Bad("pairs.json", "", ("line 1", "not valid JSON")),
    Bad("pairs.jsonl", "", ("contains no rows",)),
    Bad("pairs.csv", "prompt,chosen,rejected\n", ("contains no rows",)),
    # not the format
    Bad("pairs.json", '[{"prompt": "a"},\n\n {"prompt": }]', ("line 3", "not valid JSON")),
    Bad("pairs.json", json.dumps({"a": [PAIR], "b": [PAIR]}), ("an object with 2 lists (a, b)",)),
    Bad("pairs.json", json.dumps(PAIR), ("list of rows", "an object with no list")),
    Bad("pairs.json", jsonl(PAIR, PAIR) + "oops", ("row 3", "not valid JSON")),
    Bad("pairs.json", json.dumps([PAIR, PAIR, None]), ("row 3", "object", "got null")),
    Bad("pairs.json", "[" * 100_000, ("JSON",)),
    Bad("pairs.json", '[{"prompt": ' + "9" * 5000 + "}]", ("JSON",)),
    Bad("pairs.csv", "prompt,chosen,rejected\na,b,c\nd,e,f,g\n", ("row 2", "more cells")),
    Bad("pairs.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n", ("'chosen'",)),
    Bad("pairs.tsv", 'prompt\tchosen\trejected\n"a" b\tc\td\n', ("not valid CSV", "line 2")),
    Bad("problems.tsv", "a b\t1\nb\t2\tc\n", ("row 2", "3 cells", "question, tab, answer")),
    Bad("pairs.parquet", b"PAR1" + b"x" * 50 + b"PAR1", ("Parquet",)),
    Bad("pairs.parquet", b"PAR1" + b"x" * 50 + b"\x32\0\0\0PAR1", ("thrift",)),
    # not the encoding
    Bad("pairs.jsonl", jsonl({**PAIR, "prompt": "é"}).encode("latin-1"), ("not UTF-8", "byte")),
    # not a known kind of file
    Bad("pairs.txt", jsonl(PAIR), ("'.txt'", ".jsonl", ".csv")),
    Bad("pairs.txt.gz", b"\x1f\x8b", ("'.gz'", ".jsonl", "with .gz after it")),
    Bad("pairs.csv.gz", gzip.compress(b"a,b\n", mtime=0)[:-9], ("not a complete gzip file",)),
]
BAD_PAIRS = [
    bad_row(("'chosen'", TEXT_WANTED, "null"), chosen=None),
    bad_row(("'chosen'", "empty"), chosen="\u00a0\u202f\u2003"),
    bad_row(("'chosen'", "'rejected'", "same"), chosen="\u00a0Yes."),
    # Half of a surrogate pair: JSON can write it, but no tokenizer takes it.
    Bad("pairs.jsonl", jsonl(PAIR) + json.dumps({**PAIR, "chosen": "\ud83d"}), ("row 2", "half")),
    Bad(
        "pairs.jsonl",
        jsonl(PAIR, {"prompt": "b", "chosn": "x", "rejected": "y"}),
        ("row 2", "no column 'chosen'", "Did you mean 'chosn'?", "data.columns"),
    ),
    Bad("pairs.csv", "prompt,chosen,rejected\na,b,c\nd,e\n", ("row 2", "'rejected'")),
    Bad("pairs.csv", 'prompt,chosen,rejected\na,b,c\n"d\ne", ,f\n', ("row 2", "'chosen'", "empty")),
    Bad("pairs.jsonl", jsonl(PAIR), ("1 rows", "after 1 are set aside", "data.holdout")),
]


def bad_gold(answer: Any, *says: str) -> Bad:
    rows = [PROBLEM, {"question": "b", "answer": answer}]
    return Bad("problems.jsonl", jsonl(*rows), ("row 2", "'answer'", *says))


GOLDS_WITHOUT_A_NUMBER = (
    *("five", "It makes 5", "5 apples", "####", "Five.\n####", "#### ", "#### five"),
    *("#### 5 #### six", "#### 5 km", "#### 5 $ each", "#### 1/2", "#### 5e3", "#### inf"),
    *("#### 1,00,0", "# 5", "### 5", "nan", "--5", "#### <answer>5</answer>"),
)
BAD_PROBLEMS = [
    *(bad_gold(answer, "no number") for answer in GOLDS_WITHOUT_A_NUMBER),
    bad_gold(None, TEXT_WANTED, "null"),
    bad_gold(True, TEXT_WANTED),
    bad_gold(["5"], TEXT_WANTED, "the list"),
    bad_gold(float("inf")),
    Bad("problems.jsonl", jsonl(PROBLEM, {**PROBLEM, "question": " "}), ("row 2", "'question'")),
]


def rows_of(path: Path) -> Any:
    return read_rows(Source(path=str(path)))


def to_score(path: Path) -> Any:
    return problems_of(write_file(path.with_name("train.jsonl"), jsonl(PROBLEM)), path)


@pytest.mark.parametrize(
    ("load", "bad"),
    [
        *((rows_of, bad) for bad in UNREADABLE),
        *((pairs_of, bad) for bad in BAD_PAIRS),
        *((problems_of, bad) for bad in BAD_PROBLEMS),
        (to_score, BAD_PROBLEMS[0]),
    ],
    ids=lambda value: str(value) if isinstance(value, Bad) else value.__name__,
)
def test_malformed_data(load: Callable[[Path], Any], bad: Bad, tmp_path: Path) -> None:
    path = write_file(tmp_path / bad.name, bad.content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert message.startswith(str(path)), "the error does not begin with the file"
    for part in bad.says:
        assert part in message.removeprefix(str(path))


def test_a_missing_file_and_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in two places, an absolute one in none but its own."""
    both = f" (looked in {tmp_path} and {ROOT})"
    monkeypatch.chdir(tmp_path)
    relative = ((path, both) for path in ("nothing.csv", "./no/folder/", "~nosuchuser/x.csv"))
    for path, places in *relative, ("/nowhere/at_all", ""):
        with pytest.raises(DataError) as caught:
            read_rows(Source(path=path))
        assert str(caught.value) == f"{path}: no such file{places}"
    for path in ("hf://datasets/owner", "hf://datasets/owner/name", "hf://datasets/"):
        with pytest.raises(DataError, match="expected hf://datasets/OWNER/NAME/FILE"):
            read_rows(Source(path=path))


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (jsonl(HELD_OUT, {"question": "  B ", "answer": "1"}), "row 2 is also in {train}"),
        # Blank lines count where a row is malformed, so they count where a row is a copy.
        ("\n\n" + jsonl(HELD_OUT, PROBLEM), "row 4 is also in {train}"),
        ("\n\n" + jsonl(HELD_OUT) + "oops", "row 4: not valid JSON"),
    ],
)
def test_a_question_scored_and_trained_on(held_out: str, message: str, tmp_path: Path) -> None:
    train = write_file(tmp_path / "train.jsonl", jsonl(PROBLEM, {"question": "b?", "answer": "1"}))
    evaluation = write_file(tmp_path / "test.jsonl", held_out)
    with pytest.raises(DataError) as caught:
        problems_of(train, evaluation)
    assert str(caught.value).startswith(f"{evaluation}: {message.format(train=train)}")


def test_a_question_to_score_that_is_there_twice(tmp_path: Path, capsys: Capsys) -> None:
    pairs = write_file(tmp_path / "pairs.jsonl", jsonl({**PAIR, "prompt": "c"}, PAIR))
    same = Source(path=str(pairs))
    with pytest.raises(DataError, match=rf"^{re.escape(str(pairs))}: .*row 1 is also trained"):
        load_pair_set(PairData(train=same, eval=same), Prompt())
    train = write_file(tmp_path / "train.jsonl", jsonl(PROBLEM))
    other = {"question": "b?", "answer": "1"}
    evaluation = write_file(tmp_path / "test.jsonl", jsonl(HELD_OUT, other, HELD_OUT, HELD_OUT))
    _, problems = problems_of(train, evaluation)
    assert problems == [Problem("Two and two?", "4"), Problem("b?", "1")]
    output = capsys.readouterr().out
    assert output == f"{evaluation}: 2 repeated questions left out of scoring\n"
    write_file(train, jsonl(PROBLEM, other, PROBLEM, other, PROBLEM))
    config = demo_settings("grpo", f"data.train.path={train}", "data.validation=0")
    once = scored.load_problems("train", config.model_dump(mode="json"))
    assert once == [Problem("1 + 1 ?", "2"), Problem("b?", "1")]
    more = [*once, *once, Problem("c?", "1"), Problem("c?", "1")]
    kept, validation = for_validation(more, config.data.model_copy(update={"validation": 3}))
    assert (len(validation), len(kept)) == (2, 2)


@pytest.mark.parametrize(
    ("one", "other", "copy"),
    [
        ("What is 3 + 5?", "what is 3+5", True),
        ("Où est l'eau ?", "OÙ EST L’EAU\u00a0?", True),
        ("Où est l'eau ?", "Où est l'eau ?".replace("ù", "u\u0300"), True),  # the same in NFD
        ("Straße", "STRASSE", True),
        ("A, b; c.", "(a) b -- c!", True),
        ("What is 3 + 5?", "What is 3 - 5?", False),
        ("What is 3 × 5?", "What is 35?", False),
        ("5² + 1", "52 + 1", False),
        ("Half of 1.5 kg?", "Half of 15 kg?", False),
        ("😀", "😢", False),
        ("maïs", "mais", False),
        ("Solve x + 3 = 7.", "Solve x - 3 = 7.", False),
        ("What is -5 + 3?", "What is 5 + 3?", False),
        ("Is a < b?", "Is a > b?", False),
        ("Solve x + 3 = 7", "SOLVE **x+3 = 7**!", True),
        ("A well-known man - old - has 3 pens.", "A well known man, old, has 3 pens", True),
    ],
)
def test_trivial_edits_do_not_hide_a_copy(one: str, other: str, copy: bool) -> None:
    assert bool(seen_in_training([Problem(one, "4")], [other])) == copy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a dataset; what the datasets library makes of it is kept beside it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "dataset"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("files", "split", "says"),
    [
        ({}, "train", ()),
        ({"train.jsonl": jsonl(PAIR)}, "tset", ("tset", "train")),
        ({"train.jsonl": jsonl(PAIR, {**PAIR, "chosen": None})}, "train", ("row 2", "'chosen'")),
        ({"train.jsonl": jsonl(PAIR) + '{"prompt": '}, "train", ("JSON",)),
        ({"a.jsonl": jsonl(PAIR), "b.csv": "prompt\na\n"}, "train", (".csv and .jsonl files",)),
        ({"a.jsonl": jsonl(PAIR), "b.jsonl": jsonl({"x": 1})}, "train", ("names don't match",)),
        ({"state.json": "{}"}, "train", ()),
        ({"dataset.py": "print('run')"}, "train", ("script",)),
        (None, "trian", ("no split 'trian'", "Did you mean 'train'?")),  # a saved dataset
    ],
    ids=str,
)
def test_a_bad_folder(files: Any, split: str, says: Sequence[str], folder: Path) -> None:
    if files is None:
        import datasets

        datasets.DatasetDict({"train": datasets.Dataset.from_list([PAIR])}).save_to_disk(folder)
    for name, content in (files or {}).items():
        write_file(folder / name, content)
    with pytest.raises(DataError) as caught:
        load_pair_set(PairData(train=Source(path=str(folder), split=split)), Prompt())
    for part in (str(folder), *says):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


GOOD = [
    {"prompt": "Où est l'eau ?", "chosen": "Là\u00a0: « ici ».", "rejected": 'A "quote", a comma'},
    {"prompt": "Deux\nlignes", "chosen": "a\nb", "rejected": "a, b; c\t#"},
    {"prompt": "5", "chosen": "1 234,5", "rejected": "1234"},
    {"prompt": "Trois 😀", "chosen": "NA", "rejected": "null"},
    {"prompt": "a\u2028b\u0085c", "chosen": "é", "rejected": "e"},
]


def same_pairs(sides: tuple[list[Pair], list[Pair]]) -> None:
    """Each row of GOOD is one of the pairs, and one of them is held out."""
    system = {"role": "system", "content": "Réponds."}
    expected = [
        Pair((system, {"role": "user", "content": row["prompt"]}), row["chosen"], row["rejected"])
        for row in GOOD
    ]
    assert sorted([*sides[0], *sides[1]], key=expected.index) == expected
    assert len(sides[1]) == 1


def csv_text(rows: Rows, end: str = "\n", sign: str = ",") -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [sign.join(rows[0]), *(sign.join(cell(v) for v in row.values()) for row in rows)]
    return end.join(lines) + end


def parquet(path: Path, rows: Rows) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("good.jsonl", jsonl(*GOOD)),
        ("blank_lines.jsonl", "\n" + jsonl(*GOOD).replace("}\n", "}\n\n  \n")),
        ("spaced.jsonl", jsonl(*({k: f" \n{v}\u00a0\r\n" for k, v in r.items()} for r in GOOD))),
        ("good.json", json.dumps(GOOD, ensure_ascii=False)),
        ("good.csv", csv_text(GOOD)),
        ("long.csv", csv_text([{"more": "a" * 131_073, **row} for row in GOOD])),
        ("crlf.csv", csv_text(GOOD, "\r\n")),
        ("lines.json", jsonl(*GOOD)),
        ("list.jsonl", json.dumps(GOOD, ensure_ascii=False, indent=1)),
        ("object.json", json.dumps({"version": 1, "data": GOOD}, indent=1)),
        ("packed.jsonl.gz", gzip.compress(jsonl(*GOOD).encode(), mtime=0)),
        ("packed.csv.gz", gzip.compress(csv_text(GOOD).encode("utf-8-sig"), mtime=0)),
        ("semicolons.csv", csv_text(GOOD, sign=";")),
        ("tabs.csv", csv_text(GOOD, sign="\t")),
        ("header.tsv", csv_text(GOOD, sign="\t")),
        ("comma_in_header.csv", csv_text([{"a, b": "1", **row} for row in GOOD], sign=";")),
        ("quoted_header.csv", '"a;b;c;d",' + csv_text(GOOD).replace('\n"', '\n"1","')),
    ],
)
def test_text_formats_give_the_same_pairs(name: str, content: str | bytes, tmp_path: Path) -> None:
    same_pairs(pairs_of(write_file(tmp_path / name, content)))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "saved splits"])
@pytest.mark.filterwarnings(
    # The datasets library leaves CSV files for the garbage collector to close.
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed file:ResourceWarning",
)
def test_a_dataset_folder_gives_the_same_pairs(kind: str, folder: Path) -> None:
    import datasets

    if kind == "parquet":
        same_pairs(pairs_of(parquet(folder / "train.parquet", GOOD)))
    elif kind == "saved":
        datasets.Dataset.from_list(GOOD).save_to_disk(folder)
    elif kind == "saved splits":
        splits = {"test": datasets.Dataset.from_list([PAIR])}
        splits["train"] = datasets.Dataset.from_list(GOOD)
        datasets.DatasetDict(splits).save_to_disk(folder)
    else:
        text = {"jsonl": jsonl(*GOOD), "json": json.dumps(GOOD), "csv": csv_text(GOOD)}[kind]
        write_file(folder / f"train.{kind}", text)
    same_pairs(pairs_of(folder))
    if kind in ("jsonl", "saved splits"):
        write_file(folder / "test.jsonl", jsonl(PAIR)) if kind == "jsonl" else None
        (row,) = read_rows(Source(path=str(folder), split="test"))
        assert (row.values, row.where) == (PAIR, f"{folder}[test]: row 1")


GOLDS = {
    "2": "2",
    "One and one.\n#### 2": "2",
    "####2": "2",
    "#### 1,234": "1,234",
    "First #### 7\nno: #### 8": "8",
    "#### 0.5": "0.5",
    "#### 1\u202f234,5\n": "1\u202f234,5",
    "5%": "5",  # as in a reply's answer element
    "#### $1,234.50.": "1234.50",
    "#### -5 €": "-5",
    72: "72",  # "a number", says data.columns.answer
    0.5: "0.5",
    0.00005: "0.00005",
}


def test_gold_answers_of_jsonl_of_parquet_and_of_a_table_with_a_header(tmp_path: Path) -> None:
    rows = [{"question": f"Q {n}", "answer": answer} for n, answer in enumerate(GOLDS)]
    train, _ = problems_of(write_file(tmp_path / "problems.jsonl", jsonl(*rows)))
    assert [problem.answer for problem in train] == [*GOLDS.values()]
    for header in ("question\tanswer", "answer_text\tquestion\tanswer", ""):
        before = "x\t" * (header.count("\t") - 1)
        text = f"{header}\n{before}a b?\t5\n{before}b?\t-6\n".lstrip("\n")
        path = write_file(tmp_path / "problems.tsv", text)
        assert [problem.answer for problem in problems_of(path)[0]] == ["5", "-6"]
    path = write_file(tmp_path / "problems.tsv", "problem\tsolution\na\t5\n")
    with pytest.raises(DataError, match="no column 'question'"):  # the header is not a row
        problems_of(path)
    golds = [Decimal("69.00"), Decimal("-1234.50"), Decimal("100.00")]
    rows = [{"question": f"Q{n}", "answer": gold} for n, gold in enumerate(golds)]
    train, _ = problems_of(parquet(tmp_path / "problems.parquet", rows))
    assert [parse_number(problem.answer) for problem in train] == golds


def test_other_columns_of_a_problem_are_carried_along(tmp_path: Path, capsys: Capsys) -> None:
    """For rewards: every row has those that a table can hold, as a trainer's gives them back."""
    rows = [
        {"q": "a?", "gold": "1", "level": 1, "tags": ["x"], "prompt": "?", "note": 1}
        | {"answer": "elsewhere"},
        {"q": "b?", "gold": "2", "level": 2.5, "note": "two"},
    ]
    train = write_file(tmp_path / "train.jsonl", jsonl(*rows))
    held_out = write_file(tmp_path / "test.jsonl", jsonl({"q": "c?", "gold": "3", "level": 3}))
    columns = ProblemColumns(question="q", answer="gold")
    data = ProblemData(
        train=Source(path=str(train)), eval=Source(path=str(held_out)), columns=columns
    )
    problems, scored = load_problems(data)
    assert [problem.columns for problem in problems] == [
        {"level": 1.0, "tags": ["x"]},
        {"level": 2.5, "tags": None},
    ]
    assert scored == [Problem("c?", "3", columns={"level": 3})]
    assert "column 'note' is left out, so no reward can read it: " in capsys.readouterr().out
    assert fingerprint(problems) != fingerprint([Problem("a?", "1"), Problem("b?", "2")])


@pytest.mark.parametrize("wrong", [3, False, []])
def test_a_system_cell_that_is_no_text(wrong: Any, tmp_path: Path) -> None:
    path = write_file(tmp_path / "pairs.jsonl", jsonl({**PAIR, "sys": "a"}, {**PAIR, "sys": wrong}))
    with pytest.raises(DataError, match=r"pairs\.jsonl: row 2: column 'sys' should hold text"):
        pairs_of(path, system="sys")
    # Or a misspelt name would silently train every pair on prompt.system.
    with pytest.raises(DataError, match=r"no column 'syst'.* Did you mean 'sys'"):
        pairs_of(path, system="syst")


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    """Of a set of many gigabytes there may be no memory for them."""
    path = write_file(tmp_path / "pairs.jsonl", jsonl(*GOOD) + "no JSON\n")
    limit = len(GOOD)
    assert [row.values for row in read_rows(Source(path=str(path), limit=limit))] == GOOD
    with pytest.raises(DataError, match=f"row {limit + 1}: not valid JSON"):
        read_rows(Source(path=str(path), limit=limit + 1))
    many = parquet(tmp_path / "many.parquet", [{"n": n} for n in range(2500)])
    rows = read_rows(Source(path=str(many), limit=1500))
    assert [row.values["n"] for row in rows] == list(range(1500))
    assert rows[-1].where.endswith("many.parquet: row 1500")
    assert len(read_rows(Source(path=str(many)))) == 2500


def test_a_relative_path_is_also_looked_for_under_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_rows(Source(path="assets/demo_data/preferences.jsonl"))
    mine = tmp_path / "assets" / "demo_data" / "preferences.jsonl"
    write_file(mine, jsonl(PAIR))
    assert [row.values for row in read_rows(Source(path=f"{mine.relative_to(tmp_path)}"))] == [PAIR]


@needs_shared
def test_real_data_passes_every_check() -> None:
    gsm8k = Source(path=str(SHARED / "gsm8k" / "train.jsonl"))
    for name, count in (("gsm8k/test.jsonl", 1319), ("mgsm/mgsm_fr.tsv", 250)):
        train, scored = load_problems(
            ProblemData(train=gsm8k, eval=Source(path=str(SHARED / name)))
        )
        assert (len(train), len(scored), train[0].answer) == (7473, count, "72")
    french = SHARED / "french-preferences" / "preferences.json"
    trained, held = pairs_of(french, holdout=50, prompt="instruction")
    assert len(trained) + len(held) == 300
    assert 50 <= len(held) < 60


def hold_out(rows: list[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    return set_aside(rows, prompt_key, count, "here", "data.holdout")


MANY = [pair(f"Question number {i}") for i in range(200)]


@pytest.mark.parametrize("count", [1, 10, 50, 199])
def test_the_count_is_kept_and_nothing_is_lost(count: int) -> None:
    train, held = hold_out(MANY, count)
    assert len(held) == count
    assert [p for p in MANY if p in held] == held  # in the order of the data
    assert [p for p in MANY if p not in held] == train
    # No prompt is on both sides.
    twins = [pair(f"QUESTION, number: {i} !", "other") for i in range(200)]
    train, held = hold_out([*MANY, *twins], count)
    assert {prompt_key(p) for p in train}.isdisjoint(prompt_key(p) for p in held)
    assert count <= len(held) <= count + 1  # complete prompts, so one pair more at most
    assert len(train) + len(held) == 400


def test_the_order_of_rows_does_not_matter_and_new_ones_move_few() -> None:
    _, held = hold_out(MANY, 20)
    for seed in range(5):
        shuffled = random.Random(seed).sample(MANY, len(MANY))
        assert set(map(prompt_key, hold_out(shuffled, 20)[1])) == set(map(prompt_key, held))
    # Rows that are added later move few others.
    _, later = hold_out([*MANY, *(pair(f"New {i}") for i in range(20))], 20)
    assert len({prompt_key(p) for p in held} - {prompt_key(p) for p in later}) <= 6


def test_the_hash_is_the_same_everywhere_and_for_ever() -> None:
    """Another hash would put prompts that a published run trained on among the held-out ones."""
    key = "f0bff74152f6c87546ef66ce721e5c8b885127214c08309585f947f41607f2d2"
    assert prompt_key(pair("Bonjour, ça va ?")) == key
    assert prompt_key(pair("bonjour ÇA VA")) == key
    with_system = conversation("Bonjour, ça va ?", PromptFormat("Sois bref."))
    assert prompt_key(Pair(tuple(with_system), "a", "b")) == key
    # Or a reply that is held out would stand in the prompt of another branch, trained on.
    more = {"role": "user", "content": "Continue."}
    assert prompt_key(Pair((*with_system, more), "c", "d")) == key
    _, held = hold_out([pair(word) for word in ("trois", "un", "quatre", "deux")], 2)
    assert [p.prompt[-1]["content"] for p in held] == ["un", "deux"]


def test_a_row_over_the_limit_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    """Not by its place among those left for training: nobody could find it there."""
    rows = [{**PAIR, "prompt": text} for text in ("trois", "un", "quatre", "deux")]
    path = write_file(tmp_path / "pairs.jsonl", jsonl(*rows))
    train, _ = pairs_of(path)
    for long in train:
        lengths = [11 if p is long else 5 for p in train]
        number = 1 + [row["prompt"] for row in rows].index(long.prompt[-1]["content"])
        with pytest.raises(DataError, match=re.escape(f"{path}: row {number}")):
            drop_overlong(train, lengths, 10, "error", "training pairs")


def test_rows_over_the_limit_are_refused_or_dropped(capsys: Capsys) -> None:
    for rule in ("error", "drop"):
        assert drop_overlong(MANY[:2], [5, 10], 10, rule, "pairs") == MANY[:2]
        with pytest.raises(DataError, match=r"2 .*rows are over the limit of 10"):
            drop_overlong(MANY[:2], [11, 12], 10, rule, "pairs")
    assert capsys.readouterr() == ("", "")
    assert drop_overlong(MANY[:3], [11, 10, 12], 10, "drop", "training pairs") == MANY[1:2]
    output = "training pairs: dropped 2 of 3 rows over 10 tokens (data.overlong)\n"
    assert capsys.readouterr() == (output, "")
    with pytest.raises(DataError) as caught:
        drop_overlong(MANY[:3], [5, 11, 12], 10, "error", "training pairs")
    found = ("training pairs", "row 2", "11 tokens", "2 of 3 rows", "limit of 10")
    for part in (*found, "model.max_seq_length", "data.overlong=drop"):
        assert part in str(caught.value)


def test_the_fingerprint_tells_data_apart() -> None:
    changed = [*MANY[:-1], pair("Question number 199", "c")]
    prints = [fingerprint(rows) for rows in (MANY, MANY[:-1], MANY[::-1], changed, [])]
    assert len(set(prints)) == len(prints)
    assert fingerprint(list(MANY)) == prints[0]
    assert re.fullmatch("[0-9a-f]{64}", prints[0])


@pytest.mark.parametrize(
    ("script", "bad"),
    [
        ("dpo", BAD_PAIRS[0]),
        ("grpo", BAD_PROBLEMS[-1]),
        ("dpo", Bad("someone/pairs", "", ("[train]: neither a local file or folder nor",))),
    ],
    ids=str,
)
def test_a_script_refuses_bad_data_before_anything_is_loaded(
    script: str, bad: Bad, ask: Ask, tmp_path: Path
) -> None:
    """And a name on the hub, where HF_HUB_OFFLINE is set."""
    on_the_hub = "/" in bad.name
    path = bad.name if on_the_hub else str(write_file(tmp_path / bad.name, bad.content))
    evaluation = write_file(tmp_path / "held_out.jsonl", jsonl(HELD_OUT))
    result = ask(
        script,
        *("--config", ROOT / "configs" / f"{script}_demo.yaml", "--output", tmp_path / "run"),
        f"data.train.path={path}",
        *([f"data.eval.path={evaluation}"] if script == "grpo" else []),
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
    for part in (f"error: {path}", *bad.says):
        assert part in result.stderr
    assert ("HF_HUB_OFFLINE is set" in result.stderr) == on_the_hub
