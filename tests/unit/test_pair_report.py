"""The data report: each count on a few pairs whose answer is known, its warnings, its text."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from eval.preference import Pair
from posttrain.data.pairs import Lengths, PairSet, load_pair_set
from posttrain.data.pairs import measure as measure_lengths
from posttrain.data.report import build as pair_report
from posttrain.data.report import copies
from posttrain.data.report.build import NOT_MEASURABLE
from posttrain.data.report.examples import token_texts
from posttrain.data.report.text import render_text, render_warnings
from posttrain.data.text import normalise
from posttrain.settings import PairData, Prompt
from tests.helpers import ROOT, SHARED, needs_shared, run_script

Report = dict[str, Any]


class Words:
    """A tokenizer whose tokens are words, with a template of one word a role."""

    eos_token = "<eos>"
    added_tokens_decoder: ClassVar = {
        1: SimpleNamespace(content="<user>", special=True),
        2: SimpleNamespace(content="<eos>", special=True),
        3: SimpleNamespace(content="<think>", special=False),
    }

    def apply_chat_template(self, turns: Sequence[dict[str, str]], **_: Any) -> str:
        return " ".join(f"<{turn['role']}> {turn['content']}" for turn in turns) + " <assistant> "

    def __call__(self, texts: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self._ids(texts)}
        return {"input_ids": [self._ids(text) for text in texts]}

    def decode(self, ids: Sequence[str], **_: Any) -> str:
        return " ".join(ids)

    def _ids(self, text: str) -> list[str]:
        return text.replace(self.eos_token, f" {self.eos_token}").split()


FRENCH = "Voici une réponse claire, rédigée en français pour vous aider."
ENGLISH = "Here is an answer that was written in English to help you."


def pair(prompt: str, chosen: str = FRENCH, rejected: str = ENGLISH, where: str = "") -> Pair:
    return Pair(({"role": "user", "content": prompt},), chosen, rejected, where=where)


def several(count: int) -> list[Pair]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        pair(" ".join(letters[(i * 7 + k * k * (i + 3)) % 26] * 3 + str(i) for k in range(9)))
        for i in range(count)
    ]


def report_on(train: list[Pair], held: Sequence[Pair] = (), **more: Any) -> Report:
    """The report on pairs that are all there was; `limit` is 1,000 words."""
    limit, language = more.pop("limit", 1_000), more.pop("language", "fr")
    rows, dropped = more.pop("rows", len(train) + len(held)), more.pop("dropped", {})
    actual = PairSet(train, list(held), rows, dropped, **more)
    lengths = [measure_lengths(side, Words()) for side in (train, held)]
    report = pair_report.build(actual, lengths, Words(), limit, language)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for line in render_text(report).splitlines():
        assert len(line) <= 80
    return report


def warned(report: Report) -> list[str]:
    return [warning["about"] for warning in report["warnings"]]


def test_rows_are_counted_by_what_became_of_them() -> None:
    train = [pair("un"), pair("deux", chosen="mot " * 40), pair("trois")]
    report = report_on(train, [pair("quatre")], rows=9, dropped={"a tie": 5}, limit=30)
    counts = {"read": 9, "kept": 3, "train": 2, "held_out": 1, "validation": 0}
    assert report["rows"] == {**counts, "dropped": {"a tie": 5, "over 30 tokens": 1}}
    assert report["tokens"]["over_limit"] == {"pairs": 1, "of": 4, "share": 0.25}
    assert report["tokens"]["chosen"]["max"] == 40


def test_lengths_and_their_quantiles() -> None:
    """Of the rendered prompt and the longer reply with its EOS; a quantile is one of them."""
    (lengths,) = measure_lengths([pair("un deux trois", "a b", "c d e f")], Words())
    assert lengths == Lengths(prompt=5, chosen=2, rejected=4)
    assert lengths.total == 5 + 4 + 1
    many = [Lengths(1, n, 0) for n in range(1, 101)]
    actual = pair_report.tokens(many, 100)
    assert actual["chosen"] == {"min": 1, "median": 50, "p95": 95, "max": 100}
    assert actual["over_limit"] == {"pairs": 2, "of": 100, "share": 0.02}
    assert set(pair_report.tokens(many[:1], 100)["chosen"].values()) == {1}


def test_the_length_bias() -> None:
    lengths = [Lengths(1, 5, 2)] * 6 + [Lengths(1, 2, 5)] * 2 + [Lengths(1, 3, 3)] * 2
    actual = pair_report.length_bias(lengths, train=7)
    assert (actual["chosen_longer"], actual["chosen_shorter"], actual["same_length"]) == (6, 2, 2)
    assert actual["chosen_longer_share"]["value"] == 0.6
    assert actual["prefer_the_longer_accuracy"]["value"] == 0.7  # ties half
    assert actual["prefer_the_longer_accuracy"]["low"] < 0.7 < actual["chosen_longer_share"]["high"]
    assert actual["length_controlled_accuracy"] == "measurable on 1 held-out pairs"
    for held in (Lengths(1, 5, 2), Lengths(1, 3, 3)):  # no chosen reply of these is shorter
        actual = pair_report.length_bias([Lengths(1, 2, 5), held], train=1)
        assert actual["length_controlled_accuracy"] == NOT_MEASURABLE == "not measurable"


def test_languages_of_each_part_and_of_an_even_sample() -> None:
    pairs = [pair("Quelle est la capitale de la France ?"), pair("42")]
    actual = pair_report.languages(pairs, "fr")
    assert actual["prompt"] == {"fr": 1, "?": 1}
    assert (actual["chosen"], actual["rejected"]) == ({"fr": 2}, {"en": 2})
    assert (actual["sampled"], actual["of"]) == (2, 2)
    few = pair_report.LANGUAGE_SAMPLE
    pairs = [pair("Bonjour à tous", FRENCH if n < 2 * few else ENGLISH) for n in range(3 * few)]
    actual = pair_report.languages(pairs, "fr")
    assert (actual["sampled"], actual["of"]) == (few, 3 * few)
    assert abs(actual["chosen"]["fr"] / few - 2 / 3) < 0.01


LONG = (
    "Un train part de Lyon à huit heures et roule vers Paris à deux cents kilomètres à l'heure ; "
    "un autre part de Paris une heure plus tard. À quelle heure se croisent-ils, et où ?"
)


def test_copies_of_rows_and_prompts() -> None:
    with_system = ({"role": "system", "content": "Sois bref."}, *pair(LONG).prompt)
    pairs = [
        pair(LONG),
        pair(LONG.upper() + " !"),
        Pair(with_system, "Autre chose.", ENGLISH),
        pair("Que mange un chat ?", chosen="De tout.", rejected="de TOUT"),
        pair(LONG.replace("huit", "neuf")),
    ]
    actual = pair_report.copied(pairs, train=3)
    assert (actual["same_pair"], actual["same_prompt"]) == (1, 2)
    assert (actual["near_prompt"], actual["near_prompt_across_the_split"]) == (1, 1)
    assert actual["identical_replies"] == 1


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        ([LONG, LONG], [0, 0]),
        ([LONG, f"{LONG} Merci."], [0, 0]),
        # Not the one that is more alike: a held-out row then counts as near to training.
        ([LONG, LONG.replace("Lyon", "Nice"), LONG.replace("Lyon", "Nice") + " Merci."], [0, 0, 0]),
        ([LONG, LONG[: len(LONG) // 2]], [0, 1]),
        ([LONG, "Un train part de Lyon. Quand arrive-t-il ?"], [0, 1]),
        (["?", "!"], [0, 1]),
    ],
)
def test_near_copies(texts: list[str], first: list[int]) -> None:
    assert copies.near_copies([normalise(text) for text in texts]) == first


def from_templates(rows: int, prompts: int) -> list[str]:
    """Rows that ask for the same few things in other words and numbers, as generated data does."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(3_000)]
    subjects = [" ".join(rng.choices(words, k=6)) for _ in range(prompts)]
    return [
        f"{rng.choice(('Explique', 'Décris', 'Résume'))} en {rng.randint(20, 900)} mots, pour un "
        f"public de {rng.randint(5, 90)} ans, le sujet suivant : {rng.choice(subjects)}"
        for _ in range(rows)
    ]


def test_near_copies_are_those_of_the_exact_similarity() -> None:
    """All rows that have 70% in common with an earlier one, and no others."""
    normalised = [normalise(text) for text in from_templates(2_000, 80)]
    sequences = [{text[start : start + 5] for start in range(len(text) - 4)} for text in normalised]
    actual = copies.near_copies(normalised)
    sample = random.Random(1).sample(range(len(normalised)), 300)

    def alike(own: set[str], other: set[str]) -> bool:
        return len(own & other) >= 0.7 * len(own | other)

    expected = {i: any(alike(sequences[i], s) for s in sequences[:i]) for i in sample}
    assert {index: actual[index] != index for index in sample} == expected
    assert sum(expected.values()) > 50


def test_a_copy_of_a_copy_is_one_though_it_is_no_copy_of_the_first() -> None:
    """It counts as near to training where only the second is trained on."""
    words = [f"mot{number * number}" for number in range(40)]
    texts = [" ".join(words[start : start + 30]) for start in (0, 4, 8)]
    assert copies.near_copies([normalise(text) for text in texts]) == [0, 0, 1]
    actual = pair_report.copied([pair(text) for text in texts], train=2)
    assert (actual["near_prompt"], actual["near_prompt_across_the_split"]) == (2, 1)


QUESTION = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends every day with four. How much does she make at the market?"
)


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        (QUESTION, True),
        (f"Résous ce problème : {QUESTION} Réponds en français.", True),
        (QUESTION.upper().replace(".", " . "), True),
        (QUESTION.replace("Janet", "Anne"), True),  # most of it is still there
        ("Janet's ducks lay 16 eggs per day.", False),
        (" ".join(QUESTION.split()[-13:]), True),
        (" ".join(QUESTION.split()[-12:]), False),
        ("Combien font 1 + 1 ?", True),  # short, and the whole question
        ("Et combien font 1 + 1 ?", False),
    ],
)
def test_prompts_that_hold_a_question(prompt: str, held: bool) -> None:
    assert copies.holds_question([prompt], [QUESTION, "Combien font 1+1 ?"]) == [held]


def test_evaluation_questions_are_found_and_named() -> None:
    train = [*several(300), pair(QUESTION, where="pairs.jsonl: row 301")]
    report = report_on(train, questions=[QUESTION, "Who?"])
    actual = report["evaluation_questions"]
    assert (actual["questions"], actual["pairs"]) == (2, 1)
    assert actual["rows"] == ["pairs.jsonl: row 301"]
    assert warned(report) == ["evaluation questions"]
    assert "such as pairs.jsonl: row 301" in " ".join(render_warnings(report).split())
    assert report_on(several(3))["evaluation_questions"] is None


def test_an_example_shows_tokens_and_the_masked_part() -> None:
    (example,) = report_on([pair("un deux", "oui", "non merci", "here: row 1")])["examples"]
    assert example == {
        "where": "here: row 1",
        "masked": ["<user>", "un", "deux", "<assistant>"],
        "chosen": ["oui", "<eos>"],
        "rejected": ["non", "merci", "<eos>"],
    }


def test_three_examples_the_shortest_first_and_long_ones_cut() -> None:
    pairs = [pair("mot " * n, "a", "b", f"row {n}") for n in (5, 2, 9, 7, 1)]
    assert [e["where"] for e in report_on(pairs)["examples"]] == ["row 1", "row 5", "row 9"]
    long = report_on([pair("un", " ".join(map(str, range(2_000))), "non")], limit=5_000)
    assert len(long["examples"]) == 1
    text = render_text(long)
    for part in ("chosen (2001)", "1999¦<eos>", "  ...\n"):
        assert part in text
    assert len(text.splitlines()) < 60


@pytest.mark.filterwarnings("ignore")  # of the libraries, as they are imported
def test_the_real_tokenizer_splits_no_character() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "demo_model")
    for text in ("Où est l'élève ? 😀 ok", "¿ 漢字 ?", "a\n\nb\tc"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts = token_texts(tokenizer, ids)
        assert "".join(texts) == text
        assert 1 < len(texts) <= len(ids)
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(token_texts(tokenizer, ids))  # half a character is still shown


def with_longer(count: int) -> list[Pair]:
    return [
        pair(p.prompt[0]["content"], FRENCH + (" Oui oui." if n < count else ""), FRENCH + " !")
        for n, p in enumerate(several(240))
    ]


def with_copies(count: int) -> list[Pair]:
    return [*several(300), *several(300)[:count]]


def in_english(count: int) -> list[Pair]:
    swapped = [Pair(p.prompt, p.rejected, p.chosen) for p in several(200)[:count]]
    return [*swapped, *several(200)[count:]]


def too_long(count: int) -> list[Pair]:
    long = [Pair(p.prompt, FRENCH, "word " * 50) for p in several(240)[:count]]
    return [*long, *several(240)[count:]]


@pytest.mark.parametrize(
    ("make", "allowed", "limit", "about", "parts"),
    [
        (with_longer, 192, 1_000, "length bias", ["193 of 240 pairs", "80%", "sigmoid_norm"]),
        (with_copies, 15, 1_000, "copies", ["16 of 316 prompts"]),
        (in_english, 20, 1_000, "language", ["89.5%", "'fr'"]),
        (too_long, 12, 50, "length limit", ["13 of 240 pairs", "50 tokens", "model.max_seq_len"]),
        (lambda n: several(200 - n), 0, 1_000, "few pairs", ["only 199 pairs (threshold 200)"]),
    ],
)
def test_a_warning_beyond_its_threshold(
    make: Callable[[int], list[Pair]], allowed: int, limit: int, about: str, parts: list[str]
) -> None:
    good = report_on(make(allowed), limit=limit)
    assert good["warnings"] == [] and render_warnings(good) == ""
    assert "warning" not in render_text(good)
    report = report_on(make(allowed + 1), limit=limit)
    assert warned(report) == [about]
    for part in parts:
        assert part in report["warnings"][0]["text"]


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected"])
def test_the_warning_about_rows_that_are_rendered_already(part: str) -> None:
    """Each would be rendered twice; <think> is no special token, and replies may hold it."""
    texts = {"prompt": "Bonjour", "chosen": FRENCH, "rejected": ENGLISH}
    rendered = {**texts, part: f"<user> {texts[part]} <eos>"}
    thinking = {**texts, part: f"<think> {texts[part]}"}
    rows = [pair(**thinking, where="row 1"), *(pair(**rendered, where=f"row {n}") for n in (2, 3))]
    (warning,) = (w for w in report_on(rows)["warnings"] if w["about"] == "special tokens")
    assert warning["seen"] == 2
    assert "special tokens of the model: 2, such as <user> in row 2." in warning["text"]
    assert "special tokens" not in warned(report_on(rows[:1]))


def test_nothing_is_left() -> None:
    report = report_on(several(3), limit=5)
    assert report["rows"]["kept"] == 0
    assert report["length_bias"]["length_controlled_accuracy"] == NOT_MEASURABLE
    assert set(warned(report)) == {"length limit", "few pairs"}
    assert "language" not in warned(report_on(in_english(200), language="en"))


@needs_shared
@pytest.mark.filterwarnings("ignore")  # of the libraries, as they are imported
def test_the_public_french_pairs() -> None:
    from transformers import AutoTokenizer

    against = ("gsm8k/test.jsonl", "mgsm/mgsm_fr.tsv")
    values = {
        "train": {"path": str(SHARED / "french-preferences" / "preferences.json")},
        "columns": {"prompt": "instruction"},
        "holdout": 50,
        "check_against": [{"path": str(SHARED / name)} for name in against],
    }
    actual = load_pair_set(PairData.model_validate(values), Prompt())
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen2.5-tokenizer")
    lengths = [measure_lengths(side, tokenizer) for side in (actual.train, actual.held_out)]
    report = pair_report.build(actual, lengths, tokenizer, 1024)
    bias = report["length_bias"]
    assert (bias["chosen_longer"], bias["pairs"], bias["chosen_shorter"]) == (300, 300, 0)
    assert bias["prefer_the_longer_accuracy"]["value"] == 1
    assert bias["length_controlled_accuracy"] == "not measurable"
    assert warned(report) == ["length bias"]
    assert report["languages"]["chosen"]["fr"] >= 295
    assert report["evaluation_questions"]["questions"] == 1319 + 250
    assert report["evaluation_questions"]["pairs"] == 0
    assert "warning: chosen is longer in 300 of 300 pairs (threshold 80%)" in render_text(report)


def test_a_dry_run_prints_the_report_without_weights(tmp_path: Path) -> None:
    """Of a model folder that has none, so that nothing can load them."""
    weights = shutil.ignore_patterns("*.safetensors")
    model = shutil.copytree(ROOT / "assets" / "demo_model", tmp_path / "model", ignore=weights)
    run, path = tmp_path / "run", ROOT / "configs" / "dpo_demo.yaml"
    requested = ["--config", path, "--output", run, "--dry-run", f"model.name={model}"]
    result = run_script("dpo", *requested)
    assert (result.returncode, result.stderr) == (0, "")
    rows = ("700 (500 to train on, 200 held out)", "100 to validate on")
    for part in (*rows, "Length bias", "masked (", "<|im_end|>"):
        assert part in result.stdout
    shown, verdict = result.stdout.split("\nConfig and data are fine; ")
    assert max(map(len, shown.splitlines())) <= 80
    assert verdict.startswith("nothing was trained. To train: ./run dpo --config ")
    assert not run.exists()
    # Pairs that a run refuses are refused, once they have been reported on.
    result = run_script("dpo", *requested, "evaluation.also=[]", "model.max_seq_length=80")
    assert result.returncode == 2
    assert "over 80" in result.stdout
    assert "rows are over the limit of 80" in result.stderr
