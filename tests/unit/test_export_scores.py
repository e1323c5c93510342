"""The scores of exported files: the table, and the sentences on a file that lost."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from eval import measures
from eval.gsm8k import Problem, compare_replies, score_reply, summarise
from eval.replies import measure, scores
from posttrain.export.proof import Record as ExportRecord
from posttrain.report import export_scores, model_card, page
from posttrain.report.tables import Cell
from posttrain.run.record import read_run
from posttrain.run.replies import read_replies
from posttrain.run.results import paired
from posttrain.scoring.answers import Completion, until_answer
from tests.runs import dpo_run, grpo_run


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
    score = paired("strict", pairs, summarise(replies), compared)
    score = replace(score, tokens_per_second=1234.5)
    return {"path": "x", "proven": True, "bytes": size, "checks": [], "score": asdict(score)}


def write(run: Path, on_16_bit: dict[str, Any] | None = None, **exports: Any) -> Path:
    named = {name.replace("_", ":", 1): entry for name, entry in exports.items()}
    content = {"exports": named, "adapter_16bit": on_16_bit or {}}
    (run / "export.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def texts(cells: Sequence[Cell]) -> list[str]:
    return [cell.text for cell in cells]


def test_a_file_that_lost_says_so_and_what_to_take(run: Path) -> None:
    write(
        run,
        merged_16bit=scored(run, 0, size=4 * 10**6),
        gguf_q8_0=scored(run, 2, 1, size=2 * 10**6),
        gguf_q4_k_m=scored(run, 9, 1),
    )
    record = read_run(run)
    m = sum(bool(r.scores()["strict"]) for r in read_replies(run / "eval" / "after.jsonl"))
    assert export_scores.no_file_lost(record) == []
    (remark,) = export_scores.remarks(record)
    assert remark.startswith(f"q4_k_m lost 9 of {m} ") and remark.endswith("use q8_0.")
    adapter, merged, q8, q4 = (row.cells for row in export_scores.rows(record).rows)
    assert adapter[0].text == merged[0].text and texts(adapter)[1:3] == ["-", "-"]
    assert texts(q8)[1:] == ["+1 / -2", "1", "2.0 MB", "1,234"] and not q8[0].tone
    assert q4[0].tone == "bad" and texts(q4)[1:3] == ["+1 / -9", "0.021"]
    text = export_scores.text(record)
    assert all(len(line) <= 100 for line in text.splitlines()) and "q4_k_m lost 9" in text
    shown = page.write_report(run).read_text("utf-8")
    card = model_card.render_model_card(run)
    for text in (shown, card):
        assert export_scores.TITLE in text and "q4_k_m lost 9" in text


def test_a_file_that_is_not_proven_is_not_what_to_take(run: Path) -> None:
    small = {**scored(run, 1), "proven": False}
    write(run, gguf_q8_0=scored(run, 12, size=2 * 10**6), gguf_q4_k_m=small)
    record = read_run(run)
    (remark,) = export_scores.remarks(record)
    assert remark.endswith("no proven file is as good as it.")
    names = [row.label for row in export_scores.rows(record).rows]
    assert names == ["adapter", "gguf:q8_0", "gguf:q4_k_m (not proven)"]


def test_what_4_bit_training_costs_is_a_row_of_its_own(run: Path) -> None:
    record = read_run(write(run, scored(run, 12), gguf_q8_0=scored(run, 1)))
    names = [row.label for row in export_scores.rows(record).rows]
    assert names == ["adapter", export_scores.ON_16_BIT, "gguf:q8_0"]
    (inherited,) = export_scores.remarks(record)
    assert export_scores.no_file_lost(record)[0].startswith("No file lost")
    assert "On 16-bit weights the adapter lost 12 of" in inherited


def test_a_file_of_a_dpo_run_that_never_ends(tmp_path: Path) -> None:
    """Its replies are in French, as the adapter's, which is the main measure and not all."""
    run = dpo_run(tmp_path / "run", steps=2, pairs=60)

    def scored_replies(french: int, ended: bool) -> dict[str, Any]:
        texts = ["Oui, bien sûr."] * french + ["Yes, of course."] * (60 - french)
        replies = measure([Completion(text, 10, not ended) for text in texts])
        adapter = measure([Completion("Oui, bien sûr.", 10, False)] * 60)
        values, expected = scores(replies), scores(adapter)
        pairs = list(zip(expected["french_share"], values["french_share"], strict=True))
        compared = measures.compare(expected, values)
        score = paired("french_share", pairs, measures.summarise(values), compared)
        return {"path": "x", "proven": True, "bytes": 1, "checks": [], "score": asdict(score)}

    record = read_run(write(run, gguf_q8_0=scored_replies(60, ended=False)))
    assert export_scores.remarks(record)[0].startswith("q8_0: replies ended by EOS got worse, -100")
    assert export_scores.no_file_lost(record) == []
    heads = [column.head for column in export_scores.rows(record).columns]
    assert len(set(heads)) == len(heads)
    lost = scored_replies(40, ended=True)
    record = read_run(write(run, gguf_q8_0=scored_replies(60, ended=False), gguf_q4_k_m=lost))
    remark = export_scores.remarks(record)[-1]
    assert remark.startswith("q4_k_m lost 20 of 60 prompts that the adapter answers in the right")
    assert remark.endswith("; no proven file is as good as it.")


def test_nothing_is_shown_where_nothing_is_known(run: Path) -> None:
    assert export_scores.rows(read_run(run)).rows == [] and export_scores.text(read_run(run)) == ""
    entry = scored(run, 9)
    stale = {**entry, "stale": "made from other weights"}
    write(run, gguf_q8_0=stale, merged_16bit={**entry, "score": 3})
    assert export_scores.remarks(read_run(run)) == []
    assert export_scores.TITLE not in page.write_report(run).read_text("utf-8")
    write(run, gguf_q8_0={**entry, "score": {"main": "strict", "measures": [1]}})
    page.write_report(run)  # shows what there is


def test_a_score_stays_with_the_weights_that_it_is_of(run: Path) -> None:
    base = {"name": "b", "dtype": "float32", "sha256": "1"}
    content = {"base": base, "adapter_sha256": "2", "exports": {}, "adapter_16bit": {"score": {}}}
    (run / "export.json").write_text(json.dumps(content), encoding="utf-8")
    assert "adapter_16bit" in ExportRecord(run, base, "2").content
    assert "adapter_16bit" not in ExportRecord(run, base, "3").content


def test_a_servers_reply_ends_at_its_answer() -> None:
    several = "so <answer>2</answer>\n<answer>3</answer>"
    for text, rest in ("1+1\n<answer>2</answer>", "\nand on"), (several, " x"), ("no answer", ""):
        reply = until_answer(Completion(text + rest, 9, True))
        assert (reply.text, reply.truncated) == (text, rest == "")
