"""Problems whose answer is text: read as they are, scored by rewards, and nowhere called right."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, PromptFormat
from eval.figures import label, plain
from eval.gsm8k import Problem, compare_replies, completion_of, evaluate, summarise
from eval.measures import is_share, kind
from eval.rewarded import RewardedReply, Scorer, measure_names
from posttrain.base.errors import ConfigError, DataError, HealthError
from posttrain.base.files import rows_of
from posttrain.data.problems import load_evaluation, load_problems
from posttrain.export.texts import PROBLEMS, gate_texts
from posttrain.report import page, page_data, plots, samples
from posttrain.report.model_card import render_model_card
from posttrain.report.tables import as_markdown, compared
from posttrain.report.verdict import verdict
from posttrain.run.folder import RunFolder
from posttrain.run.record import read_run
from posttrain.run.replies import read_replies
from posttrain.scoring import reward_functions, rewarded
from posttrain.scoring.evaluation import config_of, prompt_of, weights_of
from posttrain.settings import ProblemColumns, ProblemData, Source
from rewards import RewardError
from scripts import evaluate as script
from tests.helpers import ROOT, demo_settings, write_rows
from tests.runs import text_run, unfinished
from tests.unit.conftest import Ask, make_config

OF_NUMBERS = re.compile(r"strict\b|tagged|lenient|majority|pass@|format.rate", re.IGNORECASE)
TEXT = Completion("Paris it is.", 5, False, (7, 8, 9, 10, 11))


def same(completions: Any, answer: Any, **columns: Any) -> list[float]:
    pairs = zip(completions, answer, strict=True)
    return [float(turns[-1]["content"] == gold) for turns, gold in pairs]


def few_tokens(completion_ids: Any, **columns: Any) -> list[float | None]:
    return [None if len(ids) > 5 else 1.0 / len(ids) for ids in completion_ids]


def scorer(**weights: float) -> Scorer:
    functions = {"same": same, "few_tokens": few_tokens}
    return Scorer({name: functions[name] for name in weights}, weights, PromptFormat("Be brief."))


def test_a_reward_is_called_as_in_training() -> None:
    seen: list[dict[str, Any]] = []

    def watch(**keywords: Any) -> list[float]:
        seen.append(keywords)
        return [2.5]

    score = Scorer({"watch": watch}, {"watch": 2.0}, PromptFormat("Be brief."))
    problem = Problem("Capital of France?", "Paris", columns={"level": 3, "tags": ["a"]})
    reply = score(problem, TEXT, 4)
    (keywords,) = seen
    turns = {"system": "Be brief.", "user": "Capital of France?"}
    expected = {
        "prompts": [[{"role": role, "content": text} for role, text in turns.items()]],
        "completions": [[{"role": "assistant", "content": "Paris it is."}]],
        "completion_ids": [[7, 8, 9, 10, 11]],
        "question": ["Capital of France?"],
        "answer": ["Paris"],
        "level": [3],
        "tags": [["a"]],
    }
    assert {name: keywords[name] for name in expected} == expected
    assert (reply.total_reward, reply.rewards, reply.sample) == (5.0, {"watch": 2.5}, 4)
    score(problem, Completion("x", 3, True))  # a server sends no ids, but how many there were
    assert seen[1]["completion_ids"] == [[0, 0, 0]]


def test_the_total_is_the_weighted_sum_of_what_could_be_scored() -> None:
    both = scorer(same=2.0, few_tokens=-1.0)
    problem = Problem("q", "Paris it is.")
    assert both(problem, TEXT).total_reward == pytest.approx(2.0 - 0.2)
    long = both(problem, Completion("Paris it is.", 9, True))
    assert (long.total_reward, long.rewards["few_tokens"], long.truncated_rate) == (2.0, None, 1.0)
    assert scorer(few_tokens=1.0)(problem, Completion("x", 9, False)).total_reward is None


def test_a_reward_that_fails_is_named() -> None:
    def broken(completions: Any, **columns: Any) -> list[float]:
        return [columns["level"][0]]

    score = Scorer({"mine.py:broken": broken}, {"mine.py:broken": 1.0}, PromptFormat())
    with pytest.raises(RewardError, match=r"'mine.py:broken' raised KeyError: 'level'"):
        score(Problem("q", "a"), TEXT)
    with (
        pytest.raises(ConfigError, match=r"^rewards: reward 'mine.py:broken' raised"),
        reward_functions.reward_errors(),
    ):
        score(Problem("q", "a"), TEXT)


@pytest.mark.parametrize(
    ("rewards", "names"),
    [
        (["lib/a.py:f", "b.py:g"], ["reward:f", "reward:g"]),
        (["lib/a.py:f", "b.py:f"], ["reward:lib.a.py:f", "reward:b.py:f"]),  # no / parts a set
    ],
)
def test_measures_have_short_names_that_differ(rewards: list[str], names: list[str]) -> None:
    assert measure_names(dict.fromkeys(rewards, 1.0)) == dict(zip(rewards, names, strict=True))


def test_rows_round_trip(tmp_path: Path) -> None:
    score = scorer(same=1.0, few_tokens=1.0)
    replies = [
        score(Problem("q\u2028", "Paris it is."), Completion("x", 9, True), n) for n in (0, 1)
    ]
    path = write_rows(tmp_path / "replies.jsonl", *(reply.as_row() for reply in replies))
    assert read_replies(path) == replies
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert rows_of(RewardedReply, rows, path) == replies
    assert completion_of(rows[0]) == Completion("x", 9, True)
    with pytest.raises(DataError, match="rewards scored these replies"):
        script.main(["--rescore", str(path)])
    write_rows(path, {**rows[0], "rewards": {"same": "much"}})
    with pytest.raises(DataError, match=r"row 1 is not a RewardedReply: rewards\.same"):
        read_replies(path)


def side(texts: Sequence[str], tokens: Sequence[int]) -> list[Any]:
    problems = [Problem(f"q{i}", "yes") for i in range(len(texts))]
    made = iter([Completion(t, n, False) for t, n in zip(texts, tokens, strict=True)])
    score = scorer(same=1.0, few_tokens=1.0)
    return evaluate(
        problems, lambda prompts: [next(made) for _ in prompts], PromptFormat(), score=score
    )


def test_a_comparison_is_paired_over_what_both_sides_have_scored() -> None:
    before = side(["no"] * 8, [1, 2, 4, 5, 9, 9, 4, 4])
    after = side(["yes"] * 7 + ["no"], [1, 1, 2, 9, 5, 9, 4, 4])
    result = compare_replies(before, after)
    assert list(result) == ["total_reward", "reward:same", "reward:few_tokens", "truncated_rate"]
    exact = result["reward:same"]
    assert (exact.before.value, exact.after.value, exact.n) == (0, 7 / 8, 8)
    assert exact.difference == 7 / 8 and exact.p_value == pytest.approx(2 / 2**7)
    assert exact.low > 0
    few = result["reward:few_tokens"]  # of questions 0, 1, 2, 6 and 7
    assert (few.n, few.before.n, few.after.n) == (5, 5, 5)
    assert few.before.value == pytest.approx((1 + 0.5 + 3 * 0.25) / 5)
    assert few.difference == pytest.approx((0.5 + 0.25) / 5)
    assert result["total_reward"].n == 8


def test_several_samples_are_averaged_and_have_no_pass_at_k() -> None:
    score = scorer(same=1.0)
    texts = (("a", "yes"), ("a", "no"), ("b", "no"), ("b", "no"))
    replies = [
        score(Problem(question, "yes"), Completion(text, 3, False), n % 2)
        for n, (question, text) in enumerate(texts)
    ]
    result = summarise(replies)
    assert result["reward:same"].value == 0.25 and result["reward:same"].n == 2
    assert list(result) == ["total_reward", "reward:same", "truncated_rate", "mean_tokens"]


def test_gold_text_passes_as_it_is(tmp_path: Path) -> None:
    trained = {"question": "a", "answer": "  Yes.\n#### 5 apples ", "level": 1}
    train = write_rows(tmp_path / "train.jsonl", trained, {"question": "b", "answer": 7})
    scored = {"question": "d", "answer": "yes", "level": 2}
    held_out = write_rows(tmp_path / "test.jsonl", {"question": "c", "answer": "no"}, scored)
    sources = {"train": Source(path=str(train)), "eval": Source(path=str(held_out))}
    problems, evaluation = load_problems(ProblemData(**sources, answers="text"))
    assert [problem.answer for problem in problems] == ["Yes.\n#### 5 apples", "7"]
    assert [problem.columns for problem in problems] == [{"level": 1}, {"level": None}]
    assert [problem.columns for problem in evaluation] == [{"level": None}, {"level": 2}]


@pytest.mark.parametrize(
    ("answers", "row", "says"),
    [
        ("text", {"answer": "  \n"}, "row 2: column 'answer' is empty"),
        ("text", {"answer": True}, "row 2: column 'answer' should hold text"),
        ("text", {}, "row 2: there is no column 'answer'"),
        ("number", {"answer": "blue"}, r"row 2.*'blue'.*data\.answers=text.*docs/rewards\.md"),
    ],
)
def test_an_unreadable_answer(answers: Any, row: dict[str, Any], says: str, tmp_path: Path) -> None:
    rows = ({"question": "a", "answer": "4"}, {"question": "c", **row})
    path = write_rows(tmp_path / "problems.jsonl", *rows)
    with pytest.raises(DataError, match=rf"problems\.jsonl.*{says}"):
        load_evaluation(Source(path=str(path)), ProblemColumns(), answers)


@pytest.mark.parametrize("name", ["correctness", "rewards.gsm8k:correctness_reward"])
def test_rewards_of_numbers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rewards: {name} reads numbers, .*docs/rewards\.md"):
        reward_functions.load([name], "text")
    assert reward_functions.load([name], "number").keys() == {name}


def test_a_refusal_by_the_script_comes_before_torch(ask: Ask, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", {"question": "a", "answer": "blue", "hue": 5})
    held_out = write_rows(tmp_path / "test.jsonl", {"question": "b", "answer": "red"})
    (tmp_path / "mine.py").write_text("def f(completions, hue, **_): return [1.0] * 3\n")
    result = ask(
        *("grpo", "--config", ROOT / "configs" / "grpo_demo.yaml", "--dry-run"),
        *("--output", tmp_path / "out", f"data.train.path={train}", f"data.eval.path={held_out}"),
        *("data.answers=text", "rewards={'mine.py:f': 1.0}"),
        cwd=tmp_path,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert "test.jsonl: row 1: reward 'mine.py:f' cannot be" in " ".join(result.stderr.split())


def test_scores_of_an_interrupted_run_are_taken_from_its_replies(tmp_path: Path) -> None:
    """A reward that was mended meanwhile scores both sides alike."""
    problems = [Problem(f"q{i}", gold) for i, gold in enumerate(("Paris it is.", "Rome"))]
    folder = RunFolder(tmp_path / "run")
    assert rewarded.read_scores(folder, problems, scorer(same=1.0)) is None
    folder.open(fresh=False)
    replies = [scorer(few_tokens=1.0)(problem, TEXT) for problem in problems]
    folder.write_rows("before", [reply.as_row() for reply in replies])
    result = rewarded.read_scores(folder, problems, scorer(same=3.0)) or []
    assert [reply.scores()["total_reward"] for reply in result] == [3.0, 0.0]
    assert [reply.tokens for reply in result] == [5, 5]


def test_a_validation_that_no_reward_can_score_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["data.answers=text", "rewards={'mine.py:f': 1.0}"]
    settings = demo_settings("grpo", *changes)
    problems = [Problem("q", "Paris it is.")]
    replies: list[Completion] = []
    monkeypatch.setattr(rewarded.inference, "generator", lambda *_: lambda _: replies)
    measure, main = rewarded.validator(None, None, problems, settings, scorer(few_tokens=1.0))
    replies[:] = [Completion("Paris it is.", 5, False)]
    assert measure()[main].value == 0.2
    replies[:] = [Completion("Paris it is.", 9, False)]
    with pytest.raises(HealthError, match=r"returned None for all 1 problems of data\.valid"):
        measure()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_run(tmp_path_factory.mktemp("runs") / "words")


def test_no_measure_of_numbers_is_anywhere(run: Path) -> None:
    written = page.write_report(run)
    both = page.write_comparison([run, run], run.parent / "compared.html")
    texts = [
        *((run / "eval" / f"{name}.json").read_text("utf-8") for name in ("before", "after")),
        (run / "eval" / "comparison.json").read_text("utf-8"),
        *(re.sub(r"<svg.*?</svg>|<style.*?</style>", "", p.read_text("utf-8"), flags=re.DOTALL)
          for p in (written, both)),
        render_model_card(run),
        as_markdown(compared(read_run(run).changes())),
    ]  # fmt: skip
    for text in texts:
        assert "total_reward" in text or "otal reward" in text
        assert OF_NUMBERS.findall(text) == []


def test_the_total_is_the_headline(run: Path) -> None:
    result = read_run(run)
    assert result.unreadable == [] and next(iter(result.changes())) == "total_reward"
    message = verdict(result)
    assert (message.tone, message.measure) == ("good", "total reward")
    assert message.sentence.startswith("Total reward rose from ")
    assert "60 problems)" in message.sentence
    assert "On 60 held-out problems, total reward went from" in render_model_card(run)


def test_a_reward_has_its_own_unit_whatever_its_name(run: Path) -> None:
    name = "reward:brief_rate"
    assert not is_share(name) and label(name) == "reward brief rate"
    assert kind(name).better == 0 and kind("total_reward").better == 1
    result = read_run(run).changes()
    assert result["reward:same"].n == 59 and result[name].n == 60
    assert plain(name, result[name].after.value) == "1.00"
    (drawn,) = (plot for plot in plots.plots(read_run(run)) if plot.name == "scores")
    assert "total reward" in drawn.alt and "truncated" not in drawn.alt and "%" not in drawn.alt


def test_replies_are_shown_by_what_they_earned(run: Path) -> None:
    result = read_run(run)
    totals = [[reply.total_reward for reply in result.replies[s]] for s in ("before", "after")]
    up, down = (
        sum((a > b) - (a < b) == sign for b, a in zip(*totals, strict=True)) for sign in (1, -1)
    )
    assert up and down
    assert dict(samples.flips(result)) == {
        "earned more after": up,
        "earned less after": down,
        "earned the same": 60 - up - down,
    }
    marks = {samples.mark(reply) for pair in samples.pairs(result) for reply in pair}
    assert marks <= {(None, "total reward 2.5"), (None, "total reward -0.5")}
    text = page.write_report(run).read_text(encoding="utf-8")
    assert 'class="mark">total reward 2.5<' in text and "✓ total" not in text


def test_an_unfinished_run_has_its_curve(tmp_path: Path) -> None:
    path = unfinished(text_run(tmp_path / "words", steps=3), steps=2)
    measures = [{"total_reward": {"value": v, "n": 9, "low": v, "high": v}} for v in (0.25, 1.5)]
    rows = [{"step": 2 * n, "measures": measure} for n, measure in enumerate(measures)]
    write_rows(path / "eval" / "validation.jsonl", *rows)
    (drawn,) = (plot for plot in plots.plots(read_run(path)) if plot.name == "validation")
    assert drawn.alt == "Validation: total reward from 0.25 at step 0 to 1.5 at step 2."
    assert "60 problems, never trained on" in str(page_data.facts(read_run(path)))


def test_an_export_is_checked_on_the_problems_of_its_run(run: Path) -> None:
    conversations = gate_texts(read_run(run).config)
    assert len(conversations) == 12
    assert not {turns[-1]["content"] for turns in conversations} & set(PROBLEMS)


def test_a_run_is_scored_by_its_own_rewards(run: Path) -> None:
    config = config_of(str(make_config(run / "adapter")), "mine.jsonl", None)
    own = {"my_rewards.py:same": 1.0, "my_rewards.py:brief_rate": 0.5}
    assert weights_of((), "mine.jsonl", config) == own
    assert weights_of((), "gsm8k", config) is None  # whose answers are numbers
    assert weights_of(["a.py:f", "b.py:g=-0.5"], "x", config) == {"a.py:f": 1.0, "b.py:g": -0.5}
    assert weights_of((), "x", config_of("http://127.0.0.1:1", "x", None)) is None
    for wrong in ("a.py:f=much", "a.py:f=nan", "a.py:f="):
        with pytest.raises(ConfigError, match=r"--rewards a\.py:f=.* is not a finite number"):
            weights_of([wrong], "x", config)
    # And the default prompt requests a number only where answers are numbers.
    assert prompt_of({}, "en", text=True).system is None
    assert "number" in str(prompt_of({}, "en", text=False).system)
