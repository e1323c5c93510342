"""The formats of preference data: rows in the shape of each set -> pairs, counts and refusals."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from eval import Message
from eval.preference import Pair
from posttrain.base.errors import DataError
from posttrain.data.formats import DIFFERENT_PROMPTS, FORMATS, USERS_REPLY
from posttrain.data.pairs import PairSet, load_pair_set
from posttrain.settings import PairData, Prompt
from tests.helpers import Capsys, write_rows

Row = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def read(
    folder: Path, kind: str, rows: list[Row], prompt: Prompt | None = None, **settings: Any
) -> PairSet:
    """The rows as a config of that format would read them, with a row of its own held out."""
    path = write_rows(folder / f"{kind}.jsonl", *rows)
    values = {"format": kind, "train": {"path": str(path)}, "holdout": 1, **settings}
    return load_pair_set(PairData.model_validate(values), prompt or Prompt())


def pairs(result: PairSet) -> list[Pair]:
    return sorted([*result.train, *result.held_out], key=lambda pair: pair.where)


def numbered(row: Row, count: int = 3) -> list[Row]:
    """The row with a number after each text of the user, so that prompts differ."""
    text = json.dumps(row, ensure_ascii=False)
    return [json.loads(text.replace("{n}", str(number))) for number in range(1, count + 1)]


ORCA = {"system": "Sois clair.", "question": "Où {n} ?", "chosen": "Ici.", "rejected": "Here."}
ULTRAFEEDBACK = {
    "prompt": "Écris un poème {n}.",
    "chosen": [user("Écris un poème {n}."), assistant("Ô vent.")],
    "rejected": [user("Écris un poème {n}."), assistant("O wind.")],
    "messages": [user("Écris un poème {n}."), assistant("Ô vent.")],
}
CONVERSATIONAL = {
    "prompt": [user("Bonjour {n}"), assistant("Bonjour !"), user("Et demain ?")],
    "chosen": [assistant("Il pleut.")],
    "rejected": [assistant("It rains.")],
}
OASST = {
    "lang": "fr",
    "parent_id": "6ab2",
    "prompt": "prompter: Salut {n}\nassistant: Oui ?\nDites.\nprompter: Et ?",
    "chosen": "Midi.",
    "rejected": "Noon.",
}
ARENA = {
    "conversation_a": [user("Qui es-tu {n} ?"), assistant("Un modèle.")],
    "conversation_b": [user("Qui es-tu {n} ?"), assistant("A model.")],
    "choice": "a_better",
}


def as_turn(row: Row, turn: int, choice: str | None) -> Row:
    """A row as compar:IA's export writes it: utils/dataset/compute.py of betagouv/ComparIA."""
    conversations = {
        f"full_conversation_{side}": [
            {**message, "user_content": message["content"], "reasoning_content": None}
            if message["role"] == "user"
            else {**message, "user_content": None, "reasoning_content": "Hm."}
            for message in row[f"conversation_{side}"]
        ]
        for side in "ab"
    }
    return {
        "choice": choice,
        "turn": turn,
        "model_a": "ministral",
        "model_b": "phi",
        **conversations,
        "metadata": {"tokens_a": 3, "mode": "random", "languages": ["fr", "en"]},
    }


FIRST = {"comparia": "conversation_a", "comparia_turns": "full_conversation_a"}
SECOND = {"comparia": "conversation_b", "comparia_turns": "full_conversation_b"}
EXPECTED = {
    "columns": ((user("Où ? {n}"),), "Là.", "There."),
    "orca": ((system("Sois clair."), user("Où {n} ?")), "Ici.", "Here."),
    "messages": ((user("Écris un poème {n}."),), "Ô vent.", "O wind."),
    "conversational": (tuple(CONVERSATIONAL["prompt"]), "Il pleut.", "It rains."),
    "oasst": ((user("Salut {n}"), assistant("Oui ?\nDites."), user("Et ?")), "Midi.", "Noon."),
    "comparia": ((user("Qui es-tu {n} ?"),), "Un modèle.", "A model."),
    "comparia_turns": ((user("Qui es-tu {n} ?"),), "Un modèle.", "A model."),
}
SHAPES: dict[str, Row] = {
    "columns": {"prompt": "Où ? {n}", "chosen": "Là.", "rejected": "There."},
    "orca": ORCA,
    "messages": ULTRAFEEDBACK,
    "conversational": CONVERSATIONAL,
    "oasst": OASST,
    "comparia": ARENA,
    "comparia_turns": as_turn(ARENA, 0, "a_better"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_of_each_set(kind: str, tmp_path: Path) -> None:
    rows = numbered(SHAPES[kind])
    result = read(tmp_path, kind, rows)
    turns, chosen, rejected = EXPECTED[kind]
    assert (result.rows, result.dropped) == (3, {})
    for number, pair in enumerate(pairs(result), start=1):
        output = [{**t, "content": t["content"].replace("{n}", str(number))} for t in turns]
        assert pair == Pair(tuple(output), chosen, rejected)
        assert pair.where.endswith(f"{kind}.jsonl: row {number}")
    parquet = tmp_path / f"{kind}.parquet"  # as the hub keeps nearly all
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    assert pairs(read(tmp_path, kind, rows, train={"path": str(parquet)})) == pairs(result)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_reply_that_is_no_text_and_a_column_that_is_missing(kind: str, tmp_path: Path) -> None:
    rows = numbered(SHAPES[kind])
    column = "choice" if kind in FIRST else "chosen"
    rows[2][f"{column}s"] = rows[2].pop(column)
    message = rf"row 3: there is no column '{column}'\. Did you mean '{column}s'"
    with pytest.raises(DataError, match=message):
        read(tmp_path, kind, rows)
    column = SECOND.get(kind, "rejected")
    rows[1][column] = 7
    with pytest.raises(DataError, match=rf"{kind}\.jsonl: row 2: column '{column}' should hold"):
        read(tmp_path, kind, rows)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("empty", [True, False])
def test_a_pair_that_teaches_nothing(kind: str, empty: bool, tmp_path: Path) -> None:
    rows = numbered(SHAPES[kind])
    text = " \n" if empty else f" {EXPECTED[kind][2]}"
    column = FIRST.get(kind, "chosen")
    if isinstance(rows[1][column], list):
        rows[1][column][-1]["content"] = text
    else:
        rows[1][column] = text
    with pytest.raises(DataError, match=r"row 2: columns? '\w+' .*set data\.unusable=drop"):
        read(tmp_path, kind, rows)
    result = read(tmp_path, kind, rows, unusable="drop")
    assert result.dropped == {"a reply is empty" if empty else "the replies are equal": 1}
    assert (result.rows, len(pairs(result))) == (3, 2)


def with_own_system(kind: str, row: Row, text: str) -> Row:
    if kind in ("columns", "orca"):
        return {**row, "system": text}
    names = (FIRST[kind], SECOND[kind]) if kind in FIRST else ("chosen", "rejected")
    names = ("prompt",) if kind == "conversational" else names
    return {**row, **{name: [system(text), *row[name]] for name in names}}


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "oasst"])
@pytest.mark.parametrize("given", [None, "", "Réponds."])
def test_one_rule_for_the_rows_own_system_turns(
    kind: str, given: str | None, tmp_path: Path, capsys: Capsys
) -> None:
    """Used where prompt.system is null, replaced where it is not, and counted in both cases."""
    plain = {key: value for key, value in SHAPES[kind].items() if key != "system"}
    rows = numbered(plain, 3) + numbered(with_own_system(kind, plain, "Sois bref {n}."), 5)[3:]
    columns = {"system": "system"} if kind in ("columns", "orca") else {}
    rows = [{"system": None, **row} for row in rows] if columns else rows
    result = pairs(read(tmp_path, kind, rows, Prompt(system=given), columns=columns))
    systems = [[t["content"] for t in pair.prompt if t["role"] == "system"] for pair in result]
    if given is None:
        assert systems == [[], [], [], ["Sois bref 4."], ["Sois bref 5."]]
    else:
        assert systems == [[given] if given else []] * 5
    rule = "it is used" if given is None else "prompt.system replaces it; null keeps it"
    assert f"2 of 5 rows have a system turn: {rule}\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("given", [None, "Réponds."])
def test_a_system_column_is_read_in_every_format(
    kind: str, given: str | None, tmp_path: Path
) -> None:
    rows = numbered({**SHAPES[kind], "sys": "Sois bref {n}."})
    result = pairs(read(tmp_path, kind, rows, Prompt(system=given), columns={"system": "sys"}))
    for number, pair in enumerate(result, 1):
        assert pair.prompt[0] == system(given or f"Sois bref {number}.")
        assert [turn["role"] for turn in pair.prompt].count("system") == 1


def test_orcas_columns_are_named_in_the_record_of_the_run() -> None:
    values = {"format": "orca", "train": {"path": "x.jsonl"}, "columns": {"chosen": "best"}}
    columns = PairData.model_validate(values).columns
    assert (columns.prompt, columns.system, columns.chosen) == ("question", "system", "best")
    again = PairData.model_validate(PairData.model_validate(values).model_dump(mode="json"))
    assert again.columns == columns


def test_an_orca_set_without_the_column_or_a_text_in_it(tmp_path: Path) -> None:
    rows = numbered({key: value for key, value in ORCA.items() if key != "system"})
    with pytest.raises(DataError, match="no column 'system'"):
        read(tmp_path, "orca", rows)
    assert len(pairs(read(tmp_path, "orca", rows, columns={"system": None}))) == 3
    assert len(pairs(read(tmp_path, "orca", rows, Prompt(system="Réponds.")))) == 3
    for row, empty in zip(rows, ("", "  ", None), strict=True):
        row["system"] = empty
    for pair in pairs(read(tmp_path, "orca", rows)):
        assert [turn["role"] for turn in pair.prompt] == ["user"]


def test_a_prompt_of_text_and_replies_of_messages(tmp_path: Path) -> None:
    row = {**ULTRAFEEDBACK, "chosen": [assistant("Ô vent.")], "rejected": [assistant("O wind.")]}
    result = read(tmp_path, "messages", numbered(row))
    assert pairs(result) == pairs(read(tmp_path, "messages", numbered(ULTRAFEEDBACK)))


BAD_MESSAGES: list[tuple[Any, str]] = [  # in column 'chosen'
    (None, "should hold a list of messages, got null"),
    ([], "should hold a list of messages, got none"),
    (["text"], "message 1 should have a role and a content"),
    ([{"role": "user"}], "message 1 should have a role and a content"),
    ([user("a"), {"role": "bot", "content": "b"}], "message 2 has the role 'bot'; expected one of"),
    ([user("a"), system("b")], "message 2 has the role 'system', which only the first message"),
    ([{"from": "human", "value": "a"}], "rename from and value, human and gpt to user and assist"),
    ([user(" "), assistant("b")], "message 1 is empty"),
    ([{"role": "user", "content": None}, assistant("b")], "message 1 should hold text, got null"),
    ([user("a\ud83d"), assistant("b")], "message 1 contains half a surrogate pair"),
    ([user("a")], "is empty or ends without a reply"),
]


@pytest.mark.parametrize(
    ("kind", "column", "value", "says"),
    [
        *(("messages", "chosen", value, says) for value, says in BAD_MESSAGES),
        ("conversational", "chosen", [user("a"), assistant("b")], "got 2; data.format=messages "),
        *(("comparia", "choice", value, "should hold") for value in ("claude", "A", True)),
    ],
    ids=str,
)
def test_a_malformed_cell(kind: str, column: str, value: Any, says: str, tmp_path: Path) -> None:
    rows = numbered({**SHAPES[kind], "model_a_name": "x", "model_b_name": "y"})
    rows[1][column] = value
    if "ends without" in says:  # or the two sides would part before their last reply
        rows[1]["rejected"][0] = user("a")
    with pytest.raises(DataError) as caught:
        read(tmp_path, kind, rows)
    assert str(caught.value).startswith(f"{tmp_path}/{kind}.jsonl: row 2: column '{column}'")
    assert says in str(caught.value)


CALL = [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}]
CARRIED: list[tuple[Row, str]] = [
    ({"tool_calls": CALL}, "has 'tool_calls'"),
    ({"reasoning_content": "Hm."}, "has 'reasoning_content'"),
    ({"weight": 1}, "has 'weight'"),
    ({"content": [{"type": "text", "text": "a"}] * 2}, "should hold text, got the list"),
    ({"content": [{"type": "image", "image": "a.png"}]}, "should hold text, got the list"),
    ({"content": [{"type": "text", "text": "a", "image": "a.png"}]}, "should hold text, got"),
    ({"role": "tool"}, "has the role 'tool'"),
]


@pytest.mark.parametrize("side", ["chosen", "prompt"])
@pytest.mark.parametrize(("more", "says"), CARRIED, ids=str)
def test_a_message_that_carries_more_than_text(
    side: str, more: Row, says: str, tmp_path: Path
) -> None:
    """Only role and content are trained, so a row that holds more is refused, or left out."""
    rows = numbered(CONVERSATIONAL, 4)
    rows[1][side][0] = {**rows[1][side][0], **more}
    with pytest.raises(DataError) as caught:
        read(tmp_path, "conversational", rows)
    message = str(caught.value)
    assert f"row 2: column '{side}', message 1 {says}" in message
    assert "data.unusable=drop" in message and "\n" not in message
    result = read(tmp_path, "conversational", rows, unusable="drop")
    assert (len(pairs(result)), sum(result.dropped.values())) == (3, 1)


def test_keys_that_say_nothing_or_that_the_settings_ignore(tmp_path: Path) -> None:
    rows = numbered(CONVERSATIONAL)
    expected = pairs(read(tmp_path, "conversational", rows))
    for row in rows:
        row["chosen"][0] |= {"tool_calls": [], "name": None, "id": "7f", "extra": {"a": None}}
        row["prompt"][0]["content"] = [
            {"type": "text", "text": row["prompt"][0]["content"], "image": None}
        ]
        row["tools"] = "[]"
    with pytest.raises(DataError, match=r"has 'id', .*data\.columns\.ignored=\[id\]"):
        read(tmp_path, "conversational", rows)
    assert pairs(read(tmp_path, "conversational", rows, columns={"ignored": ["id"]})) == expected


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", ["tools", "images"])
def test_columns_that_belong_to_the_prompt(kind: str, column: str, tmp_path: Path) -> None:
    rows = numbered(SHAPES[kind], 4)
    rows[2][column] = CALL
    with pytest.raises(DataError, match=rf"row 3: column '{column}' would be left out of training"):
        read(tmp_path, kind, rows)
    dropped = read(tmp_path, kind, rows, unusable="drop").dropped
    assert dropped == {f"column '{column}' is not empty": 1}
    ignored = [column, "user_content", "reasoning_content"]
    assert len(pairs(read(tmp_path, kind, rows, columns={"ignored": ignored}))) == 4


@pytest.mark.parametrize(
    ("kind", "other"),
    [("columns", "messages"), ("columns", "conversational"), ("messages", "columns")],
)
def test_rows_of_another_format_are_recognised(kind: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"row 1: .*; data\.format={other} reads rows such as"):
        read(tmp_path, kind, numbered(SHAPES[other]))


def test_a_prompt_that_ends_in_a_reply(tmp_path: Path) -> None:
    rows = numbered({**CONVERSATIONAL, "prompt": [user("{n}"), assistant("Hm.")]})
    with pytest.raises(DataError, match="row 1: the prompt should end in a turn of the user"):
        read(tmp_path, "conversational", rows)


def test_other_languages_are_left_out_and_counted(tmp_path: Path, capsys: Capsys) -> None:
    rows = numbered(OASST, 5)
    rows[1]["lang"], rows[3]["lang"] = "en", "pt-BR"
    result = read(tmp_path, "oasst", rows, language="fr")
    assert (result.rows, result.dropped) == (5, {"not in 'fr'": 2})
    assert len(pairs(result)) == 3
    assert "left out 2 of 5 rows: not in 'fr' (2)" in capsys.readouterr().out
    assert len(pairs(read(tmp_path, "oasst", rows))) == 5
    with pytest.raises(DataError, match=r"no row is left of 5: not in 'de' \(5\)"):
        read(tmp_path, "oasst", rows, language="de")
    with pytest.raises(DataError, match=r"data\.language: 'french' .*; use a code such as fr"):
        read(tmp_path, "oasst", rows, language="french")


def test_the_language_filter_takes_other_formats_and_columns(tmp_path: Path) -> None:
    rows = numbered({**SHAPES["columns"], "langue": "fr"})
    rows[0]["langue"] = "en"
    result = read(tmp_path, "columns", rows, language="fr", columns={"language": "langue"})
    assert result.dropped == {"not in 'fr'": 1}
    with pytest.raises(DataError, match="no column 'lang'"):
        read(tmp_path, "columns", rows, language="fr")


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("assistant: est un mot. Et toi ?", ["assistant: est un mot. Et toi ?"]),
        ("Lis ceci.\nprompter: a\nassistant: b", ["Lis ceci.\nprompter: a\nassistant: b"]),
        ("prompter: a", ["a"]),
        ("prompter: a\nassistant: b\nprompter: c", ["a", "b", "c"]),
    ],
)
def test_the_turns_of_an_oasst_prompt(text: str, turns: list[str], tmp_path: Path) -> None:
    rows = [*numbered(OASST), {**OASST, "prompt": text}]
    prompt = pairs(read(tmp_path, "oasst", rows))[-1].prompt
    assert [turn["content"] for turn in prompt] == turns
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "user"][: len(turns)]


def test_what_users_said_next_is_no_reply(tmp_path: Path) -> None:
    """oasst ranks those too, and a model would learn to speak as the user."""
    rows = [*numbered(OASST), {**OASST, "prompt": "prompter: a\nassistant: b"}]
    assert read(tmp_path, "oasst", rows).dropped == {USERS_REPLY: 1}


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        *((name, "Un modèle.") for name in ("a", "model_a", "a_better", "ministral")),
        *((name, "A model.") for name in ("b", "model_b", "b_better", "phi")),
    ],
)
def test_the_side_that_was_chosen(choice: str, chosen: str, tmp_path: Path) -> None:
    named = {"model_a_name": "ministral", "model_b_name": "phi", "both_equal": False}
    rows = [{**row, **named, "vote": choice} for row in numbered(ARENA)]
    result = pairs(read(tmp_path, "comparia", rows, columns={"choice": "vote"}))
    assert {pair.chosen for pair in result} == {chosen}
    assert {pair.rejected for pair in result} == {"Un modèle.", "A model."} - {chosen}


def test_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = numbered(ARENA, 11)
    choices = ("tie", "both_good", "both_bad", "tie (bothbad)", None, "", "idk", None)
    for row, choice in zip(rows[3:], choices, strict=True):
        row["choice"] = choice
    rows[10]["both_equal"] = True
    result = read(tmp_path, "comparia", rows)
    assert (result.rows, result.dropped) == (11, {"a tie": 5, "no vote": 3})


SEVERAL = {
    "conversation_a": [user("a {n}"), assistant("Oui."), user("b"), assistant("Non.")],
    "conversation_b": [user("a {n}"), assistant("Yes."), user("b"), assistant("No.")],
    "choice": "b_better",
}


def test_a_vote_after_the_models_have_parted(tmp_path: Path) -> None:
    rows = [*numbered(SEVERAL), *numbered(SEVERAL)]
    for row in rows[:3]:
        row["conversation_b"][1] = assistant("Oui.")
    result = read(tmp_path, "comparia", rows)
    assert result.dropped == {DIFFERENT_PROMPTS: 3}
    assert pairs(result)[0].prompt == (user("a 1"), assistant("Oui."), user("b"))


def test_a_vote_about_an_earlier_reply(tmp_path: Path) -> None:
    rows = [{**row, "turn": 0} for row in numbered(SEVERAL)]
    result = read(tmp_path, "comparia", rows, columns={"turn": "turn"})
    assert pairs(result)[0] == Pair((user("a 1"),), "Yes.", "Oui.")
    for wrong in (2, -1, "0", None, True, 0.0):
        rows[1]["turn"] = wrong
        with pytest.raises(DataError, match=r"row 2: column 'turn' should count one of 2 turns"):
            read(tmp_path, "comparia", rows, columns={"turn": "turn"})


def test_a_vote_on_each_turn_of_a_conversation(tmp_path: Path) -> None:
    """Of the second, each model answered its own first reply: no pair can be made of it."""
    rows = [
        row
        for turn, choice in enumerate(("b_better", "a_better"))
        for row in numbered(as_turn(SEVERAL, turn, choice))
    ]
    result = read(tmp_path, "comparia_turns", rows)
    assert (result.rows, result.dropped) == (6, {DIFFERENT_PROMPTS: 3})
    assert pairs(result) == [Pair((user(f"a {n}"),), "Yes.", "Oui.") for n in (1, 2, 3)]


def test_turns_are_filtered_by_the_languages_that_they_list(tmp_path: Path) -> None:
    rows = numbered(SHAPES["comparia_turns"], 5)
    rows[0]["metadata"]["languages"] = ["en"]
    rows[1]["metadata"]["languages"] = None
    result = read(tmp_path, "comparia_turns", rows, language="fr")
    assert (result.rows, result.dropped) == (5, {"not in 'fr'": 2})
    rows[2]["metadata"]["languages"] = "fr"
    with pytest.raises(DataError, match=r"row 3: column 'metadata\.languages' should hold a list"):
        read(tmp_path, "comparia_turns", rows, language="fr")
    del rows[2]["metadata"]["languages"]
    with pytest.raises(DataError, match="row 3: there is no column 'languages' in column 'metadat"):
        read(tmp_path, "comparia_turns", rows, language="fr")
    assert len(pairs(read(tmp_path, "comparia_turns", rows))) == 5


def test_a_turn_that_one_model_left_without_a_reply_and_an_empty_one(tmp_path: Path) -> None:
    """It is the turn of the user that is counted, or the reply to another one would be taken."""
    rows = numbered(as_turn(SEVERAL, 0, "b_better"), 4) + numbered(as_turn(SEVERAL, 1, "b_better"))
    del rows[1]["full_conversation_a"][1]
    for row in rows[4:]:
        row["full_conversation_a"][1] = row["full_conversation_b"][1] = assistant("")
    for given, says in (
        (rows, "row 2: column 'full_conversation_a' is empty or ends"),
        (rows[4:], "row 1: column 'full_conversation_b', message 2 is empty"),
    ):
        with pytest.raises(DataError, match=says):
            read(tmp_path, "comparia_turns", given)
    result = read(tmp_path, "comparia_turns", rows, unusable="drop")
    assert (result.dropped, len(pairs(result))) == ({"a reply is empty": 4}, 3)


def test_what_comes_after_the_turn_is_not_read(tmp_path: Path) -> None:
    rows = numbered(as_turn(SEVERAL, 0, "a_better"))
    rows[0]["full_conversation_a"][3] = assistant("")
    rows[1]["full_conversation_b"].append(user("c"))
    assert len(pairs(read(tmp_path, "comparia_turns", rows))) == 3


def test_models_with_different_system_turns(tmp_path: Path) -> None:
    """They make other prompts, unless the config's replaces them."""
    rows = numbered(SHAPES["comparia_turns"], 4)
    rows[0]["full_conversation_a"].insert(0, system("Sois bref."))
    rows[0]["full_conversation_b"].insert(0, system("Sois long."))
    assert read(tmp_path, "comparia_turns", rows).dropped == {DIFFERENT_PROMPTS: 1}
    assert len(pairs(read(tmp_path, "comparia_turns", rows, Prompt(system="Réponds.")))) == 4


def test_pairs_of_their_own_to_hold_out_are_counted_too(tmp_path: Path) -> None:
    rows = numbered(ARENA, 4)
    ties = [{**row, "choice": "tie"} for row in rows[2:3]]
    held = write_rows(tmp_path / "held.jsonl", *rows[3:], *ties)
    result = read(tmp_path, "comparia", [*rows[:2], *ties], eval={"path": str(held)})
    assert (result.rows, result.dropped) == (5, {"a tie": 2})
    assert (len(result.train), len(result.held_out)) == (2, 1)
