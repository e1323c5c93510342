"""Rows to learn replies from: sampled replies by what they earned, and the formats of ./run sft."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval import Completion
from eval.gsm8k import Problem, score_reply
from eval.rewarded import RewardedReply
from posttrain.base.errors import ConfigError, DataError
from posttrain.data.demonstrations import DemonstrationSet, load_demonstrations
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import load_problems, within_pass_rate
from posttrain.data.replies import pass_rates, read_sampled
from posttrain.run.replies import folder_for, read_replies
from posttrain.settings import Source
from posttrain.settings.data import PassRate
from tests.helpers import Capsys, demo_settings, write_rows
from tests.unit.test_pair_formats import assistant

RIGHT, BARE, WRONG = "So 4.\n<answer>4</answer>", "It is 4.", "So 5.\n<answer>5</answer>"  # 3, 0, 1


def sampled(folder: Path, replies: dict[str, list[tuple[str, bool]]]) -> Path:
    """A replies.jsonl as ./run evaluate writes it; each reply is a text and whether it was cut."""
    rows = [
        score_reply(Problem(question, "4"), Completion(text, 9, cut), n).as_row()
        for question, given in replies.items()
        for n, (text, cut) in enumerate(given)
    ]
    return write_rows(folder / "replies.jsonl", *rows)


def learned(data: str, *overrides: str, system: str = "null") -> DemonstrationSet:
    changes = [f"data={data}", f"prompt.system={system}", "evaluation.every=null", *overrides]
    own = demo_settings("sft", *changes)
    return load_demonstrations(own.data, own.prompt)


USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ASIDE = {"role": "user", "content": "Another?"}
CALL = {**USER, "tool_calls": ["x"]}


MANY = {f"What is {n} + {4 - n}?": [(RIGHT, False), (WRONG, False)] for n in range(9)}


def test_the_replies_that_earned_most_are_kept(tmp_path: Path, capsys: Capsys) -> None:
    longer, longest = f"Well. {RIGHT}", f"Well, well. {RIGHT}"
    first = [(longest, False), (RIGHT, False), (RIGHT, False), (longer, False), (BARE, False)]
    file = sampled(tmp_path, {**MANY, "First?": [*first, ("", False)], "Cut?": [(RIGHT, True)]})
    for path in (file, tmp_path):  # the file, or its folder
        data = f"{{train: {{path: {path}}}, format: replies, holdout: 2, validation: 2}}"
        result = learned(data)
        assert (len(result.held_out), len(result.validation)) == (2, 2)
        rows = [*result.train, *result.held_out, *result.validation]
        of_first = [row for row in rows if row.prompt[-1]["content"] == "First?"]
        assert [row.reply for row in of_first] == [RIGHT, longer]  # the shortest different two
        assert len(rows) == len(MANY) + 2 and not any("Cut?" in str(row.prompt) for row in rows)
        assert {row.answer for row in rows} == {"4"}
        assert f"{tmp_path / 'replies.jsonl'}: row " in rows[0].where
    kept = "kept 11 of 25 replies, to 10 questions; 12 earned below 3 or were cut, "
    repeated = "1 repeat another, 1 are beyond 2 of a question"
    assert kept + repeated in capsys.readouterr().out
    rows = learned(data, "data.keep={reward: 1, per_question: 9}").train
    assert {row.reply for row in rows} == {RIGHT, WRONG, longer, longest}
    with pytest.raises(DataError, match=r"no reply earned 3\.5; sample more .* data\.keep\.reward"):
        learned(data, "data.keep.reward=3.5")


def test_replies_are_learned_without_the_examples_of_their_sampling(tmp_path: Path) -> None:
    data = f"{{train: {{path: {sampled(tmp_path, MANY)}}}, format: replies, holdout: 2}}"
    row = learned(data, system="'Be brief.'").train[0]
    assert row.conversation == [SYSTEM, row.prompt[-1]]
    shown = learned(data, "prompt.examples=[{question: Q, answer: A}]", system="'Be brief.'").train
    example = [{"role": "user", "content": "Q"}, assistant("A")]
    assert shown[0].conversation == [SYSTEM, *example, row.prompt[-1]]
    assert row.prompt == shown[0].prompt  # by which rows are held out, with and without examples


def test_best_against_worst(tmp_path: Path, capsys: Capsys) -> None:
    replies = {
        **MANY,
        "Tie?": [(RIGHT, False), (f"Well. {RIGHT}", False)],
        "Best cut?": [(RIGHT, True), (WRONG, False), (BARE, False)],
        "Worst?": [(f"Well. {RIGHT}", False), (RIGHT, False), ("5 and on", True), (BARE, False)],
        "All cut?": [(RIGHT, True), (WRONG, True)],
    }
    file = sampled(tmp_path, replies)
    data = f"data={{train: {{path: {file}}}, format: replies, holdout: 3, validation: 2}}"
    own = demo_settings("dpo", data, "prompt.system='Be brief.'", "evaluation.every=null")
    result = load_pair_set(own.data, own.prompt)
    assert (len(result.held_out), len(result.validation)) == (3, 2)
    pairs = {
        pair.prompt[-1]["content"]: (pair.chosen, pair.rejected)
        for pair in [*result.train, *result.held_out, *result.validation]
    }
    assert pairs.pop("Best cut?") == (WRONG, BARE)
    assert pairs.pop("Worst?") == (RIGHT, BARE)  # the shortest best, a complete worst
    assert pairs == dict.fromkeys(MANY, (RIGHT, WRONG))
    assert result.train[0].prompt[0] == SYSTEM
    assert "11 questions give a pair; 2 left out" in capsys.readouterr().out
    flat = sampled(tmp_path / "flat", {"Tie?": replies["Tie?"]})
    own = demo_settings("dpo", f"data={{train: {{path: {flat}}}, format: replies, validation: 0}}")
    with pytest.raises(DataError, match="no question has replies of different rewards"):
        load_pair_set(own.data, own.prompt)


def test_problems_within_a_pass_rate(tmp_path: Path, capsys: Capsys) -> None:
    demo = demo_settings("grpo")
    problems, _ = load_problems(demo.data)
    requested = [problem.question for problem in problems[:4]]
    shares = dict(zip(requested, (0, 1, 3, 4), strict=True))
    replies = {q: [(RIGHT, False)] * k + [(BARE, False)] * (4 - k) for q, k in shares.items()}
    file = sampled(tmp_path, replies)
    assert pass_rates(PassRate(replies=str(file))) == {q: k / 4 for q, k in shares.items()}
    rule = f"data.pass_rate={{replies: {file}, low: 0.25, high: 0.75}}"
    kept = within_pass_rate(problems[:6], demo_settings("grpo", rule).data)
    assert kept == [*problems[1:3], *problems[4:6]]  # the last two have no replies
    output = "4 of 6 problems kept, 1 solved in fewer than 25% of their replies and 1 in more"
    assert output in capsys.readouterr().out
    with pytest.raises(DataError, match=r"data\.pass_rate leaves no problem to train on; widen it"):
        within_pass_rate([problems[0], problems[3]], demo_settings("grpo", rule).data)
    assert within_pass_rate(problems, demo.data) == problems
    flat = sampled(tmp_path / "cold", {q: [(BARE, False)] * 2 for q in requested})
    with pytest.raises(DataError, match=r"every reply in .* earned 0, so none shows which"):
        pass_rates(PassRate(replies=str(flat)))


def test_replies_of_an_earlier_version_and_of_rewards_that_could_not_score(tmp_path: Path) -> None:
    old = score_reply(Problem("2 + 2?", "4"), Completion(RIGHT, 9, False)).as_row()
    del old["total_reward"]
    texts = [
        RewardedReply("Who?", "me", "You.", 3, 0.0, total, {"a.py:f": total}).as_row()
        for total in (None, 0.5)
    ]
    file = write_rows(tmp_path / "replies.jsonl", old, *texts)
    who, sums = read_sampled(Source(path=str(file)))[::-1]
    assert [row.total for row in who] == [0.5] and [row.total for row in sums] == [3.0]
    write_rows(file, {"question": "2 + 2?", "reply": "4"})
    with pytest.raises(DataError, match=r"row 1 is not a scored reply of \./run evaluate: no tot"):
        read_sampled(Source(path=str(file)))
    for odd in ({"total_reward": "abc"}, {"format_rate": None, "tagged": 1.0}):
        write_rows(file, {"question": "2 + 2?", "reply": "4", **odd})
        with pytest.raises(DataError, match="row 1: what the reply earned is not a number"):
            read_sampled(Source(path=str(file)))


def test_an_evaluation_that_was_damaged_is_one_line(tmp_path: Path) -> None:
    row = score_reply(Problem("2 + 2?", "4"), Completion(RIGHT, None, False)).as_row()
    assert read_replies(write_rows(tmp_path / "replies.jsonl", row))[0].tokens is None
    for name, odd in ("tokens", "x"), ("sample", None), ("question", None), ("answer", "many"):
        file = write_rows(tmp_path / "replies.jsonl", row, {**row, name: odd})
        with pytest.raises(DataError, match=rf"^{file}: row 2 is not a (Reply: {name}|scored)"):
            read_replies(file)
    for content in ("", "[1]"):
        (tmp_path / "request.json").write_text(content)
        with pytest.raises(ConfigError, match=f"^{tmp_path}/request.json .*; restore it"):
            folder_for(tmp_path, {})


ORCA = {"system": "Be brief.", "question": "Why?", "chosen": "So.", "rejected": "Because."}
PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "Because."}
TALK = [SYSTEM, ASIDE, assistant("No."), USER]
SOLUTION = {"question": "Why?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### $1,024"}


@pytest.mark.parametrize(
    ("data", "row", "prompt", "reply"),
    [
        ("columns: {prompt: q, reply: a}", {"q": "Why?", "a": " So. "}, [USER], "So."),
        ("columns: {system: s}", {**PAIR, "reply": "So.", "s": "Be brief."}, [SYSTEM, USER], "So."),
        ("format: messages", {"messages": [*TALK, assistant("So.")], "reply": "no"}, TALK, "So."),
        ("format: chosen", PAIR, [USER], "So."),
        ("format: chosen, pair_format: orca", ORCA, [SYSTEM, USER], "So."),
        ("format: solutions", SOLUTION, [USER], "48/2 = 24 clips.\n<answer>1024</answer>"),
    ],
)
def test_every_format_gives_a_prompt_and_a_reply(
    data: str, row: Any, prompt: list[dict[str, str]], reply: str, tmp_path: Path
) -> None:
    other = json.loads(json.dumps(row).replace("Why?", "Where?").replace("Another", "One more"))
    file = write_rows(tmp_path / "rows.jsonl", row, other)
    given = f"{{train: {{path: {file}}}, holdout: 1, {data}}}"
    result = learned(given)
    (read,) = [row for row in (*result.train, *result.held_out) if row.prompt[-1] == USER]
    assert (list(read.prompt), read.reply) == (prompt, reply)
    replaced = learned(given, system="''")
    assert all(turn["role"] != "system" for turn in replaced.train[0].conversation)


@pytest.mark.parametrize(
    ("data", "row", "message"),
    [
        ("columns: {}", {"prompt": "Why?", "reply": " "}, "row 1: there is no reply to learn"),
        ("columns: {}", {"prompt": "Why?", "text": "So."}, "row 1: there is no column 'reply'"),
        ("columns: {}", {"prompt": "Why?", "reply": "So.", "tools": ["x"]}, "column 'tools' would"),
        ("format: messages", {"messages": [USER]}, "row 1: there is no reply to learn"),
        ("format: messages", {"messages": [CALL, assistant("So.")]}, "message 1 has 'tool_calls'"),
        ("format: solutions", {**SOLUTION, "answer": "So, 4."}, "should end in '#### number'"),
        ("format: solutions", {**SOLUTION, "answer": "So.\n#### four"}, "gives no number"),
        ("format: replies", {"question": "Why?", "reply": "So."}, "not a scored reply"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(
    data: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError) as caught:
        learned(f"{{train: {{path: {file}}}, holdout: 1, {data}}}")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_unusable_rows_are_left_out_where_that_is_set(tmp_path: Path, capsys: Capsys) -> None:
    rows = [{"prompt": f"Why {n}?", "reply": "So." if n else ""} for n in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", *rows)
    result = learned(f"{{train: {{path: {file}}}, holdout: 1, unusable: drop}}")
    assert len(result.train) == 2
    assert "left out 1 of 4 rows: a reply is empty (1)" in capsys.readouterr().out
