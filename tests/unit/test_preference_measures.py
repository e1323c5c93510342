"""What DPO's evaluation measures, against cases worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, MeasuredReply, measures, preference, replies
from eval.preference import Pair, ScoredPair
from eval.replies import kl_per_token, measure
from eval.stats import Difference, Measure, wilson_interval
from posttrain.base.errors import DataError
from posttrain.run.folder import RunFolder
from posttrain.scoring.changed_reply import example
from posttrain.scoring.pairs import load_problems, measured, read_scores, without_system
from posttrain.settings import DPOSettings
from tests.helpers import ROOT, Capsys, demo_settings, write_rows

SYSTEM = {"role": "system", "content": "Réponds en français."}


def test_length_controlled_accuracy_is_that_of_pairs_whose_shorter_reply_is_chosen() -> None:
    """Of six pairs three have the shorter chosen: one is right, one wrong, one a tie."""
    pairs = [
        ScoredPair(1.0, 0.0, 3, 9),
        ScoredPair(0.0, 1.0, 3, 4),
        ScoredPair(0.5, 0.5, 1, 2),
        ScoredPair(1.0, 0.0, 9, 3),
        ScoredPair(1.0, 0.0, 4, 4),  # of the same length: neither is the shorter
        ScoredPair(1.0, 0.0, 8, 7),
    ]
    result = measures.summarise(preference.scores(pairs))
    low, high = wilson_interval(1.5, 3)
    assert result["length_controlled_accuracy"] == Measure(0.5, 3, low, high)
    assert result["reward_accuracy"].value == pytest.approx(4.5 / 6)
    assert result["reward_margin"].value == pytest.approx(3 / 6)
    # Scores are beta times the gap between policy and reference.
    (pair,) = preference.score_pairs([(-3.0, -8.0)], [(-5.0, -7.0)], [(4, 6)], beta=0.5)
    assert pair == ScoredPair(1.0, -0.5, 4, 6)
    assert (pair.reward_margin, pair.reward_accuracy) == (1.5, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "p", "way"),
    [(0.1, 0.3, 0.049, 1), (-0.3, -0.1, 0.01, -1), (0.1, 0.3, 0.05, 0), (-0.1, 0.3, 0.01, 0)],
)
def test_a_change_beyond_chance_has_both(low: float, high: float, p: float, way: int) -> None:
    change = Difference(0.1, low, high, p, 60)
    names = ("strict", "truncated_rate", "mean_tokens")
    assert [measures.direction(name, change) for name in names] == [way, -way, 0]


def test_what_is_measured_of_a_reply() -> None:
    completions = [
        Completion("Le chat dort sur le canapé depuis ce matin.", 12, False),
        Completion("The cat has been asleep on the sofa " * 4, 80, True),
        Completion("", 1, False),
    ]
    french, english, empty = measure(completions)
    assert french == MeasuredReply(completions[0].text, 12, True, True, 0.0)
    assert (english.ended, english.in_language) == (False, False)
    assert english.repetition == pytest.approx(1 - 8 / 29)
    assert (empty.in_language, empty.ended, empty.repetition) == (False, True, 0.0)
    result = measures.summarise(replies.scores([french, english, empty]))
    expected = {"french_share": 1 / 3, "ended_share": 2 / 3, "mean_tokens": 31.0}
    expected["repetition_rate"] = (1 - 8 / 29) / 3
    assert {name: each.value for name, each in result.items()} == pytest.approx(expected)
    low, high = wilson_interval(2, 3)
    assert result["ended_share"] == Measure(2 / 3, 3, low, high)


@pytest.mark.parametrize(
    ("language", "name", "text"),
    [
        ("fr", "french_share", "Le chat dort sur le canapé depuis ce matin."),
        ("pl", "language_share", "Kot śpi na kanapie od dzisiejszego poranka."),
    ],
)
def test_replies_are_measured_in_the_language_of_the_run(
    language: str, name: str, text: str, tmp_path: Path
) -> None:
    texts = (text, "The cat has been asleep on the sofa since this morning.")
    replies = measure([Completion(t, 12, False) for t in texts], language)
    prompt = {"side": "before", "system": None, "earlier": [], "prompt": "?"}
    rows = [{**prompt, **vars(reply)} for reply in replies]
    run = RunFolder(tmp_path)
    (tmp_path / "eval").mkdir()
    for file in ("before", "before_replies", "before_replies_without_system", "before_samples"):
        run.write_rows(file, rows if file == "before_replies" else [])
    settings = demo_settings("dpo", f"data.language={language}", "evaluation.also=[]")
    scores = read_scores(run, settings)
    assert scores is not None
    result = scores.measures()
    assert result[name] == [1, 0]
    assert {"french_share", "language_share"} & set(result) == {name} <= set(measures.KINDS)


def test_replies_without_a_system_turn_are_a_separate_measure() -> None:
    """Three of four in French with it before, one without; all of them after."""
    french, english = (MeasuredReply("x", 1, True, right, 0.0) for right in (True, False))
    with_it = [french, french, french, english]
    without = [english, english, english, french]
    before = replies.scores(with_it, "fr", without)
    assert list(before)[:2] == ["french_share", "french_share_without_system"]
    after = replies.scores([french] * 4, "fr", [french] * 4)
    result = measures.compare(before, after)["french_share_without_system"]
    low, high = wilson_interval(1, 4)
    assert result.before == Measure(0.25, 4, low, high)
    assert (result.difference, result.n) == (0.75, 4)
    assert result.p_value == pytest.approx(2 / 2**3)  # McNemar, 3 against 0
    in_german = {"language_share", "language_share_without_system"}
    assert set(replies.scores(with_it, "de", without)) >= in_german
    assert "french_share_without_system" not in replies.scores(with_it)


def test_the_system_turn_is_left_out_wherever_it_comes_from() -> None:
    plain, two, several = pair("Un ?"), pair("Deux ?"), pair("a", "b", "c")
    with_turn = [replace(each, prompt=(SYSTEM, *each.prompt)) for each in (two, several)]
    assert without_system([plain]) == without_system([]) == []
    assert without_system([with_turn[0], plain, with_turn[1]]) == [two, plain, several]


def test_a_row_of_replies_holds_the_turns_before_the_last() -> None:
    roles = ("system", "user", "assistant", "user")
    turns = [{"role": role, "content": text} for role, text in zip(roles, "sabc", strict=True)]
    pair = Pair(tuple(turns), "x", "y")
    (row,) = measured([pair], [Completion("Oui.", 2, False)], "after", "fr")
    assert (row.system, row.earlier, row.prompt) == ("s", turns[1:3], "c")


def test_the_change_of_replies_is_paired() -> None:
    """Each reply ten tokens longer, though lengths differ by far more between prompts."""
    before = [MeasuredReply("x", 10 * i, True, False, 0.0) for i in range(1, 21)]
    after = [MeasuredReply("x", 10 * i + 10, i > 2, True, 0.0) for i in range(1, 21)]
    result = measures.compare(replies.scores(before), replies.scores(after))
    tokens = result["mean_tokens"]
    assert (tokens.difference, tokens.low, tokens.high) == (10.0, 10.0, 10.0)
    assert tokens.p_value == pytest.approx(2 / 2**20)
    assert result["ended_share"].difference == pytest.approx(-0.1)
    assert result["ended_share"].p_value == pytest.approx(0.5)  # McNemar, 2 against 0
    assert result["repetition_rate"].p_value == 1.0
    with pytest.raises(ValueError, match="measures differ"):
        measures.compare({"a": [1.0]}, {"b": [1.0]})


def test_kl_by_hand() -> None:
    """Tokens of probability 1/2 and 1/2 under the policy, 1/4 and 1 under the reference."""
    policy, reference = [math.log(0.5)] * 2, [math.log(0.25), 0.0]
    k3 = [(0.5 - 1 - math.log(0.5)), (2 - 1 - math.log(2))]
    assert kl_per_token(policy, reference) == pytest.approx(sum(k3) / 2)
    # A tiny one is not lost to rounding.
    assert kl_per_token([-1.0], [-1.0 + 1e-6]) == pytest.approx(5e-13, rel=1e-3)


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "assets" / "demo_model")


def pair(*turns: str) -> Pair:
    roles = ("user", "assistant")
    prompt = tuple({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))
    return Pair(prompt=prompt, chosen="oui", rejected="no")


def sums(folder: Path, *questions: str, more: str = "max_new_tokens: 80") -> DPOSettings:
    """Settings that score these questions too, each with the answer 4."""
    rows = [{"question": question, "answer": "#### 4"} for question in questions]
    path = write_rows(folder / "mgsm_fr.tsv.jsonl", *rows)
    return demo_settings("dpo", f"evaluation.also=[{{name: a, path: '{path}', {more}}}]")


def test_problem_sets_are_loaded(tmp_path: Path, capsys: Capsys) -> None:
    more = "limit: 2, language: fr, max_new_tokens: 80"
    settings = sums(tmp_path, "2 + 2 ?", "1 + 3 ?", "4 + 0 ?", more=more)
    result = load_problems(settings, [pair("Bonjour")], tokenizer())
    assert [p.question for p in result["a"]] == ["2 + 2 ?", "1 + 3 ?"]
    out = capsys.readouterr().out
    assert "Also scored before and after: a (2)" in out
    assert "MGSM is GSM8K's test questions 0-249 translated" in out


TRAINED_ON = r"evaluation.also: a: 1 of 2 questions .*'2 \+ 2 \?'"


@pytest.mark.parametrize(
    ("question", "turns", "message"),
    [
        ("2 + 2 ?", ["2+2?"], TRAINED_ON),
        ("2 + 2 ?", ["Bonjour", "Oui ?", "2 + 2 ?"], TRAINED_ON),
        ("un " * 200, ["Bonjour"], r"a: .*row 2 takes \d+ tokens .* over the limit of 176"),
    ],
)
def test_a_question_that_is_trained_on_or_leaves_no_room_is_refused(
    question: str, turns: list[str], message: str, tmp_path: Path
) -> None:
    settings = sums(tmp_path, "1 + 3 ?", question)
    with pytest.raises(DataError, match=message):
        load_problems(settings, [pair("Salut"), pair(*turns)], tokenizer())


def reply(text: str, french: bool = True, ended: bool = True) -> MeasuredReply:
    return MeasuredReply(text, len(text.split()), ended, french, 0.0)


def test_the_first_reply_that_changed_its_language_is_shown() -> None:
    pairs = [pair("Un ?"), pair("Deux ?"), pair("Trois ?"), pair("Quatre ?")]
    before = [reply("same"), reply("moi"), reply("me", french=False)]
    shown = example(pairs, before, [reply("same"), reply("toi"), reply("moi")])
    assert shown.startswith("2 of 3 replies changed, 1 of them in language; the first of")
    assert "Trois ?" in shown and "Deux ?" not in shown
    assert shown.endswith("before (tokens: 1):\nme\n\nafter (tokens: 1):\nmoi")
    unchanged = example(pairs, before, before)
    assert unchanged == "All 3 replies are the same before and after."
    assert "evaluation.replies is 0" in example(pairs, [], [])


def test_long_replies_are_cut_to_width_and_height(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    before, after = reply("mot " * 400 + "fin", ended=False), reply("x" * 300 + "\x1b[1m")
    shown = example([pair("Dis\n" * 20)], [before], [after])
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) < 32
    assert shown.count("[...]") == 2 and "\x1b" not in shown
    assert "before (tokens: 401, cut at the limit)" in shown
