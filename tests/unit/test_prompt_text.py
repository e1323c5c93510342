"""Rendered prompts: the date in them, openings that replies repeat, ids that no embedding has."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from eval import PromptFormat, conversation
from eval.preference import Pair
from posttrain.base.errors import ConfigError, DataError
from posttrain.data.pairs import measure
from posttrain.data.render import (
    clock_note,
    limit_token_ids,
    render,
    repeated_opening,
    set_template_variables,
    template_variables,
    token_ids,
)
from posttrain.export.ollama import export_ollama
from tests.families import CHATML, DATED, FAMILIES, THINKING, make_tokenizer
from tests.helpers import ROOT, Capsys

ASKED = conversation("Combien font 2 + 2 ?", PromptFormat("Réponds."))
PINNED = "Today Date: 01 Jan 2026"
# As in DeepSeek-R1 and Qwen3's thinking models.
BEGUN = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")

PLAIN = "{% for t in messages %}{{ t.content }}\n{% endfor %}Réponse :"


def with_template(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "demo_model")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("day", [datetime(2027, 3, 1), datetime(2030, 12, 31)])
def test_the_date_is_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return day

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = with_template(DATED)
    by_library = tokenizer.apply_chat_template(ASKED, tokenize=False)
    assert f"Today Date: {day:%d %b %Y}" in by_library
    assert PINNED in render(tokenizer, ASKED)
    pinned = tokenizer.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, **template_variables(tokenizer)
    )
    assert pinned == render(tokenizer, ASKED)  # as trl's GRPOTrainer gets them
    today = f"Today Date: {datetime.now():%d %b %Y}"  # as a server has it
    assert today in render(tokenizer, ASKED, today=True)


def test_the_line_about_the_date() -> None:
    tokenizer = with_template(DATED)
    assert "01 January 2026" in str(clock_note(tokenizer))
    set_template_variables(tokenizer, {"date_string": "26 Jul 2024"})
    assert clock_note(tokenizer) is None
    assert "Today Date: 26 Jul 2024" in render(tokenizer, ASKED)
    assert clock_note(with_template(CHATML)) is None


@pytest.mark.parametrize("chosen", [True, False])
def test_the_ollama_file_names_its_date(chosen: bool, tmp_path: Path, capsys: Capsys) -> None:
    tokenizer = with_template(DATED)
    set_template_variables(tokenizer, {"date_string": "26 Jul 2024"} if chosen else {})
    prompt = PromptFormat("Réponds.")
    path, check = export_ollama(tmp_path / "model.gguf", tokenizer, prompt, [], {})
    assert check.passed
    date = "26 Jul 2024" if chosen else "01 Jan 2026"
    assert f"Today Date: {date}" in path.read_text(encoding="utf-8")
    assert ("in an Ollama export too" in capsys.readouterr().out) != chosen


@pytest.mark.parametrize(
    ("template", "variables", "reply", "repeated"),
    [
        (BEGUN, {}, "<think>\nDeux et deux.\n</think>\n4", "<think>"),
        (BEGUN, {}, "\n<think>4", "<think>"),
        (BEGUN, {}, "Deux et deux.\n</think>\n4", None),
        (BEGUN, {}, "Combien ? 4", None),
        (THINKING, {"enable_thinking": False}, "<think>\nDeux.\n</think>\n4", "<think>"),
        (THINKING, {}, "<think>\nDeux.\n</think>\n4", None),
        (CHATML, {}, "<|im_start|>assistant\n4", "<|im_start|>assistant"),
        (PLAIN, {}, "Réponse : 4", "Réponse :"),
        (PLAIN, {}, "4", None),
    ],
)  # fmt: skip
def test_a_reply_that_repeats_the_end_of_its_prompt(
    template: str, variables: dict[str, bool], reply: str, repeated: str | None
) -> None:
    tokenizer = with_template(template)
    set_template_variables(tokenizer, variables)
    # The last line of the question is also that of a reply: it is no part of the template.
    requested = conversation("2 + 2 ?\nCombien ?", PromptFormat())
    assert repeated_opening(tokenizer, requested, render(tokenizer, requested), reply) == repeated


def test_pairs_with_such_replies_are_refused() -> None:
    prompt = tuple(conversation("2 + 2 ?", PromptFormat()))
    sides = (("4</think>4", "5"), ("4", "<think>\n4</think>4"))
    pairs = [Pair(prompt, *side, where=f"a: row {n}") for n, side in enumerate(sides, start=1)]
    with pytest.raises(DataError, match=r"^a: row 2: a reply begins with '<think>'.* do 1 replies"):
        measure(pairs, with_template(BEGUN))
    assert len(measure(pairs, with_template(CHATML))) == 2
    for name in FAMILIES:  # replies that repeat nothing
        tokenizer, requested = make_tokenizer(FAMILIES[name]), conversation("M ?", PromptFormat())
        for reply in ("M ?", "assistant", "model", "<answer>4</answer>", ""):
            rendered = render(tokenizer, requested)
            assert repeated_opening(tokenizer, requested, rendered, reply) is None


def test_ids_that_the_model_has_no_embedding_for() -> None:
    tokenizer = with_template(CHATML)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    limit_token_ids(tokenizer, rows, "model.name: 'm'")
    assert token_ids(tokenizer, ["2 + 2", ""])  # a token that no text has does no harm
    with pytest.raises(
        ConfigError, match=rf"'m': the token '<extra>' in '.*<extra>' has id {rows}"
    ):
        token_ids(tokenizer, ["2 + 2", "a" * 100 + "<extra>"])
    limited = with_template(CHATML)
    limit_token_ids(limited, rows, "m")
    limited.add_special_tokens({"pad_token": "<|padding|>"})
    with pytest.raises(ConfigError, match=rf"'<|padding|>' .for padding.* ids below {rows} only"):
        limit_token_ids(limited, rows, "m")
