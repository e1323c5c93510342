"""What a run leaves to take home: the table, and what is said of a file that lost."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.gsm8k import Problem, compare_replies, score_reply, summarise
from eval.measures import paired
from posttrain.export.proof import Record as ExportRecord
from posttrain.report import model_card, page, taken_home
from posttrain.run.record import read_run
from posttrain.run.replies import read_replies
from posttrain.scoring.answers import Completion, until_answer
from tests.runs import grpo_run

RIGHT = 0.8  # of 60 problems


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return grpo_run(tmp_path / "run", steps=3)


def scored(run: Path, lost: int, gained: int = 0, size: int = 10**6) -> dict[str, Any]:
    """An entry of export.json: a file that gets other problems wrong and right than the adapter."""
    adapter = read_replies(run / "eval" / "after.jsonl")
    replies, left = [], {1.0: lost, 0.0: gained}
    for reply in adapter:
        right = reply.scores()["strict"] or 0.0
        if left[right] > 0:
            left[right] -= 1
            right = 1.0 - right
        text = f"<answer>{reply.as_row()['answer'] if right else 'none'}</answer>"
        gold = Problem(reply.question, reply.as_row()["answer"])
        replies.append(score_reply(gold, Completion(text, 5, False)))
    pairs = [(a.scores()["strict"], b.strict) for a, b in zip(adapter, replies, strict=True)]
    compared = compare_replies(adapter, replies)
    score = paired("strict", pairs, summarise(replies), compared) | {"tokens_per_second": 1234.5}
    return {"path": "x", "proven": True, "bytes": size, "checks": [], "score": score}


def write(run: Path, on_16_bit: dict[str, Any] | None = None, **exports: Any) -> Path:
    named = {name.replace("_", ":", 1): entry for name, entry in exports.items()}
    content = {"exports": named, "adapter_16bit": on_16_bit or {}}
    (run / "export.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def right(run: Path) -> int:
    return sum(bool(r.scores()["strict"]) for r in read_replies(run / "eval" / "after.jsonl"))


def test_a_file_that_lost_says_so_and_what_to_take(run: Path) -> None:
    write(
        run,
        merged_16bit=scored(run, 0, size=4 * 10**6),
        gguf_q8_0=scored(run, 2, 1, size=2 * 10**6),
        gguf_q4_k_m=scored(run, 9, 1),
    )
    found = read_run(run)
    m = right(run)
    assert taken_home.no_file_lost(found) == ""
    assert taken_home.words(found) == [
        f"q4_k_m lost 9 of {m} questions that the adapter answers (and gained 1); take q8_0."
    ]
    adapter, merged, q8, q4 = taken_home.lines(found)
    assert adapter.value == merged.value and adapter.rest[:2] == ("-", "-")
    assert q8.rest == ("+1 / -2", "1", "2.0 MB", "1,234") and not q8.tone
    assert q4.tone == "bad" and q4.rest[:2] == ("+1 / -9", "0.021")
    text = taken_home.text(found)
    assert all(len(line) <= 100 for line in text.splitlines()) and "q4_k_m lost 9" in text
    shown = page.write_report(run).read_text("utf-8")
    card = model_card.render_model_card(run)
    for said in (shown, card):
        assert "What you take home" in said and "q4_k_m lost 9" in said


def test_no_file_as_good_as_the_adapter(run: Path) -> None:
    (said,) = taken_home.words(read_run(write(run, gguf_q4_k_m=scored(run, 12))))
    assert said.endswith("no proven file is as good as it.")


def test_a_file_that_is_not_proven_is_not_what_to_take(run: Path) -> None:
    small = {**scored(run, 1), "proven": False}
    write(run, gguf_q8_0=scored(run, 12, size=2 * 10**6), gguf_q4_k_m=small)
    found = read_run(run)
    (said,) = taken_home.words(found)
    assert said.endswith("no proven file is as good as it.")
    names = [line.name for line in taken_home.lines(found)]
    assert names == ["adapter", "gguf:q8_0", "gguf:q4_k_m (not proven)"]


def test_what_4_bit_training_costs_is_a_row_of_its_own(run: Path) -> None:
    found = read_run(write(run, scored(run, 12), gguf_q8_0=scored(run, 1)))
    assert [line.name for line in taken_home.lines(found)] == [
        "adapter",
        taken_home.ON_16_BIT,
        "gguf:q8_0",
    ]
    (inherited,) = taken_home.words(found)
    assert taken_home.no_file_lost(found).startswith("No file lost")
    assert "On 16-bit weights the adapter lost 12 of" in inherited


def test_nothing_is_said_where_nothing_is_known(run: Path) -> None:
    assert taken_home.lines(read_run(run)) == [] and taken_home.text(read_run(run)) == ""
    entry = scored(run, 9)
    write(
        run,
        gguf_q8_0={**entry, "stale": "made from other weights"},
        merged_16bit={**entry, "score": 3},
    )
    assert taken_home.words(read_run(run)) == []
    assert "What you take home" not in page.write_report(run).read_text("utf-8")
    for odd in ({"main": 3}, {"main": "strict", "measures": [1], "against_adapter": {"strict": 2}}):
        write(run, gguf_q8_0={**entry, "score": odd})
        page.write_report(run)  # shows what there is


def test_a_score_stays_with_the_weights_that_it_is_of(run: Path) -> None:
    base = {"name": "b", "dtype": "float32", "sha256": "1"}
    content = {"base": base, "adapter_sha256": "2", "exports": {}, "adapter_16bit": {"score": {}}}
    (run / "export.json").write_text(json.dumps(content), encoding="utf-8")
    assert "adapter_16bit" in ExportRecord(run, base, "2").content
    assert "adapter_16bit" not in ExportRecord(run, base, "3").content


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("1+1\n<answer>2</answer>\nand on", "1+1\n<answer>2</answer>"),
        (
            "so <answer>2</answer>\n<answer>3</answer> x",
            "so <answer>2</answer>\n<answer>3</answer>",
        ),
        ("no answer", "no answer"),
    ],
)
def test_a_servers_reply_ends_at_its_answer(text: str, cut: str) -> None:
    reply = until_answer(Completion(text, 9, True))
    assert (reply.text, reply.truncated) == (cut, cut == text)
