"""The judge: its prompt, how its verdicts are read and counted, and a real server."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from eval import MeasuredReply
from eval.judge import (
    INSTRUCTIONS,
    ORDERS,
    Comparison,
    Order,
    Verdict,
    outcome,
    parse_verdict,
    question,
    summarise,
)
from eval.replies import detect
from eval.stats import NOT_MEASURABLE, Measure, wilson_interval
from posttrain.base.errors import ConfigError, DataError
from posttrain.run.results import PromptReply
from scripts import judge
from tests.helpers import Capsys, write_rows
from tests.unit.conftest import Ask
from tests.unit.test_server import Reply, Server, api, choice, no_pauses

__all__ = ["api", "no_pauses"]
KEY = "sk-judge-2718281828"
Given = dict[Order, Verdict | None]


@pytest.mark.parametrize("language", INSTRUCTIONS)
def test_the_replies_change_places(language: str) -> None:
    assert detect(INSTRUCTIONS[language]) == language
    compared = Comparison("Quel temps ?", "It rains.", "Il pleut.", "Réponds en français.")
    first, second = (question(compared, order, language) for order in ORDERS)
    assert first[0] == second[0] == {"role": "system", "content": INSTRUCTIONS[language]}
    texts = [turns[1]["content"] for turns in (first, second)]
    for text in texts:
        assert text.index("Réponds en français.") < text.index("Quel temps ?")
    assert texts[0].index("It rains.") < texts[0].index("Il pleut.")
    assert texts[1].index("Il pleut.") < texts[1].index("It rains.")
    assert sorted(texts[0]) == sorted(texts[1]) and "before" not in texts[0]
    text = question(Comparison("Hi", "a", "b"), "before_first", language)[1]["content"]
    assert text.startswith("[Message]\nHi\n[/Message]")  # without a system turn
    empty, full = (question(Comparison("Hi", "", "b"), each, language) for each in ORDERS)
    assert [turns[1]["content"].count("[/") for turns in (empty, full)] == [3, 3]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The second is in French.\n\nVerdict: B\n", "B"),
        ("Verdict: tie", "tie"),
        ("Les deux se valent.\nVerdict : égalité.", "tie"),
        ("**Verdict :** « `B` »", "B"),
        ("### Verdict: [[A]]", "A"),
        ("A", "A"),
        ("Verdict: Reply B", "B"),
        ("Verdict: A\nOn reflection:\nVerdict: B", "B"),
        ("<think>Verdict: A?</think>\nVerdict: B", "B"),
        ("", None),
        ("Verdict: C", None),
        ("Verdict: A or B", None),
        ("A is better than B", None),
        ("Verdict: A\nbecause it is French.", None),
        ("Reply A: Bonjour", None),
    ],
)
def test_verdicts(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def given(before_first: Verdict | None, after_first: Verdict | None) -> Given:
    return {"before_first": before_first, "after_first": after_first}


def test_outcomes() -> None:
    """After wins where it is preferred in both orders, as does before; all else is a tie."""
    won, lost = outcome(given("B", "A")), outcome(given("A", "B"))
    assert (won, lost) == (1.0, 0.0)
    ties = given("A", "A"), given("tie", "tie"), given("B", "tie")
    assert [outcome(each) for each in ties] == [0.5] * 3
    assert outcome(given(None, "A")) is outcome(given("B", None)) is None


def test_the_report_by_hand() -> None:
    """3 wins, 1 loss, 2 ties (one inconsistent, one identical), 1 that cannot be read."""
    compared = [Comparison(f"q{i}", f"b{i}", f"a{i}") for i in range(6)]
    compared.append(Comparison("q6", "same", "same"))
    verdicts = [
        *[given("B", "A")] * 3,
        given("A", "B"),
        given("A", "A"),
        given("B", None),
        given(None, None),  # never judged
    ]
    result = summarise(compared, verdicts)
    low, high = wilson_interval(4, 6)
    assert result.win_rate == Measure(4 / 6, 6, low, high)
    assert result.p_value == 0.625  # 3 against 1: 2 (1 + 4) / 16
    assert (result.wins, result.ties, result.losses, result.left_out) == (3, 2, 1, 1)
    assert (result.comparisons, result.identical_replies) == (7, 1)
    assert (result.verdicts, result.unparsable_verdicts) == (12, 1)
    assert result.inconsistent == 1
    assert result.consistency.value == 4 / 5 and result.consistency.n == 5
    # B A, B A, B A, A B, A A, B: six of eleven say A
    assert result.first_is_preferred.value == pytest.approx(6 / 11)


def test_replies_to_the_same_prompt_count_once() -> None:
    """Four replies to one prompt all win, those to three others lose: one prompt against three."""
    compared = [Comparison("q", "b", f"a{i}") for i in range(4)]
    compared += [Comparison(f"other {i}", "b", "a") for i in range(3)]
    result = summarise(compared, [given("B", "A")] * 4 + [given("A", "B")] * 3)
    assert (result.win_rate.value, result.win_rate.n) == (0.25, 4)
    assert (result.wins, result.losses) == (4, 3)
    assert result.p_value == 0.625


FRENCH = "Il fait très beau aujourd'hui dans toute la ville."
ENGLISH = "The weather is very nice today in all of the city, I would say."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten prompts: after training, 6 replies turned French, 2 English, and 2 stayed as they are."""
    folder = tmp_path / "run"
    sides: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for i in range(10):
        before, after = (
            (ENGLISH, FRENCH) if i < 6 else (FRENCH, ENGLISH) if i < 8 else (FRENCH, FRENCH)
        )
        for side, text in (("before", before), ("after", after)):
            earlier = [{"role": "user", "content": "Bonjour"}] if i == 0 else []
            prompt = f"Quel temps fait-il ? {i}"
            reply = MeasuredReply(text, 9, ended=True, in_language=text == FRENCH, repetition=0.0)
            answered = side, "Réponds en français.", earlier, prompt
            sides[side].append(vars(PromptReply(*answered, **vars(reply))))
    for side, rows in sides.items():
        write_rows(folder / "eval" / f"{side}_replies.jsonl", *rows)
    return folder


def replies_in(body: dict[str, Any]) -> tuple[str, str]:
    """The two replies that the judge is shown, in their places."""
    text = body["messages"][1]["content"]
    parts = [text.split(f"[Réponse {x}]\n")[1].split(f"\n[/Réponse {x}]")[0] for x in "AB"]
    return parts[0], parts[1]


def french_judge(body: dict[str, Any], number: int) -> Reply:
    a, b = (detect(text) == "fr" for text in replies_in(body))
    verdict = "A" if a > b else "B" if b > a else "égalité"
    return choice(f"Voici pourquoi.\n\nVerdict : {verdict}")


def judged(run: Path, api: Server, *more: str | Path) -> dict[str, Any]:
    assert (
        judge.main([str(run), "--url", api.url, "--model", "org/the judge", *map(str, more)]) == 0
    )
    report = json.loads((run / "judge" / "org-the-judge" / "report.json").read_text("utf-8"))
    assert isinstance(report, dict)
    return report


def test_a_judge_that_wants_french(api: Server, run: Path, capsys: Capsys) -> None:
    api.plan = french_judge
    report = judged(run, api)
    assert (report["wins"], report["ties"], report["losses"]) == (6, 2, 2)
    assert report["win_rate"]["value"] == 0.7 and report["win_rate"]["n"] == 10
    assert (report["win_rate"]["low"], report["win_rate"]["high"]) == wilson_interval(7, 10)
    assert report["p_value"] == pytest.approx(2 * (1 + 8 + 28) / 2**8)
    assert report["consistency"]["value"] == 1.0 and report["first_is_preferred"]["value"] == 0.5
    assert len(api.bodies) == 16  # both orders of eight; identical replies are not judged
    body = api.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("org/the judge", 0.0, 512)
    assert {path for path, _ in api.seen} == {"/v1/chat/completions"}
    prompt = "user: Bonjour\n\nuser: Quel temps fait-il ? 0"
    compared = Comparison(prompt, ENGLISH, FRENCH, "Réponds en français.")
    assert question(compared, "before_first", "fr") in [body["messages"] for body in api.bodies]
    out = capsys.readouterr().out
    assert "10 prompts, 0 verdicts kept from an earlier call, 16 to request" in out
    assert "win rate of after       70.0% [" in out and "6, 2, 2" in out
    rows = (run / "judge" / "org-the-judge" / "verdicts.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == 16
    assert set(json.loads(rows[0])) == {"comparison", "order", "verdict", "reply"}


def test_replies_that_all_stayed_the_same(api: Server, run: Path, capsys: Capsys) -> None:
    """As after a run of a few steps: nothing is requested, and there is a report."""
    before = (run / "eval" / "before_replies.jsonl").read_bytes()
    (run / "eval" / "after_replies.jsonl").write_bytes(before)
    report = judged(run, api)
    assert not api.bodies and "0 to request" in capsys.readouterr().out
    assert (report["wins"], report["ties"], report["identical_replies"]) == (0, 10, 10)


def test_a_judge_that_answers_garbage(api: Server, run: Path, capsys: Capsys) -> None:
    api.plan = lambda *_: choice("As a language model, I like both.")
    report = judged(run, api, "--limit", "8")
    assert report["win_rate"] == vars(NOT_MEASURABLE)
    assert (report["unparsable_verdicts"], report["verdicts"], report["left_out"]) == (16, 16, 8)
    out = capsys.readouterr().out
    assert "win rate of after       not measurable" in out
    assert "warning: over 5% of the verdicts cannot be read" in out


def test_the_same_command_resumes(
    api: Server, run: Path, no_pauses: list[float], capsys: Capsys
) -> None:
    path = run / "judge" / "org-the-judge" / "verdicts.jsonl"
    api.plan = lambda body, n: french_judge(body, n) if n < 5 else (402, "no credit left")
    with pytest.raises(ConfigError, match="status 402: no credit left"):
        judged(run, api, "--at-once", "1")
    assert len(path.read_text("utf-8").splitlines()) == 5
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"comparison": 4, "ord')  # the crash came while a verdict was written
    api.plan = french_judge
    before = len(api.bodies)
    report = judged(run, api)
    assert (report["wins"], report["ties"], report["losses"]) == (6, 2, 2)
    assert len(api.bodies) - before == 11
    assert "5 verdicts kept from an earlier call, 11 to request" in capsys.readouterr().out
    assert len(path.read_text("utf-8").splitlines()) == 16
    assert judged(run, api) == report and len(api.bodies) - before == 11


def test_what_is_under_way_when_another_fails_is_kept(api: Server, run: Path) -> None:
    refused, answered = threading.Event(), threading.Event()
    under_way = threading.Semaphore(0)

    def plan(body: dict[str, Any], number: int) -> Reply:
        if number == 0:
            for _ in range(2):
                under_way.acquire(timeout=5)
            refused.set()
            return 400, "bad request"
        under_way.release()
        refused.wait(5)
        answered.wait(0.3)  # until after the refusal has arrived
        return french_judge(body, number)

    api.plan = plan
    with pytest.raises(ConfigError, match="bad request"):
        judged(run, api, "--at-once", "3")
    path = run / "judge" / "org-the-judge" / "verdicts.jsonl"
    assert len(path.read_text("utf-8").splitlines()) == len(api.bodies) - 1 < 8


def test_more_prompts_later(api: Server, run: Path) -> None:
    api.plan = french_judge
    assert judged(run, api, "--limit", "3")["comparisons"] == 3
    assert judged(run, api)["comparisons"] == 10
    assert len(api.bodies) == 16
    assert judged(run, api, "--limit", "3")["wins"] == 3 and len(api.bodies) == 16


def test_another_request_is_another_folder(
    api: Server, run: Path, tmp_path: Path, capsys: Capsys
) -> None:
    api.plan = french_judge
    judged(run, api)
    first = run / "judge" / "org-the-judge"
    replies = run / "eval" / "after_replies.jsonl"
    replies.write_text(replies.read_text("utf-8").replace("beau", "froid"), "utf-8")
    for _ in range(2):  # the second time nothing is requested
        judged(run, api)
    assert "replies was " in capsys.readouterr().out
    before = len(api.bodies)
    judged(run, api)
    assert len(api.bodies) == before
    assert (first.with_name("org-the-judge-2") / "report.json").exists()
    with pytest.raises(ConfigError, match=r"language was 'fr', now 'en'; .*give another --output"):
        judged(run, api, "--language", "en", "--output", first)
    judged(run, api, "--output", tmp_path / "other")
    assert (tmp_path / "other" / "report.json").exists()


def test_a_wrong_url_leaves_nothing_behind(api: Server, run: Path, no_pauses: list[float]) -> None:
    api.plan = french_judge
    arguments = [str(run), "--model", "org/the judge", "--url"]
    with pytest.raises(ConfigError, match="no answer from"):
        judge.main([*arguments, "http://127.0.0.1:9"])
    assert not any((run / "judge").iterdir())
    assert judge.main([*arguments, api.url]) == 0
    before = len(api.bodies)
    assert judge.main([*arguments, f"{api.url}/v1"]) == 0  # the same judge under another address
    assert len(api.bodies) == before


def test_what_cannot_be_judged(api: Server, run: Path, tmp_path: Path) -> None:
    verdicts = write_rows(run / "judge" / "org-the-judge" / "verdicts.jsonl", {"comparison": 0})
    with pytest.raises(DataError, match="line 1 is not a verdict"):
        judged(run, api)
    verdicts.unlink()
    with pytest.raises(ConfigError, match=r"no finished DPO run there .*before_replies.jsonl"):
        judged(tmp_path / "nowhere", api)
    after = run / "eval" / "after_replies.jsonl"
    text = after.read_text("utf-8")
    after.write_text(text.split("\n", 1)[1], "utf-8")
    with pytest.raises(ConfigError, match="not to the same prompts"):
        judged(run, api)
    after.write_text('{"prompt": "?"}\n', "utf-8")
    with pytest.raises(DataError, match="row 1 is not a PromptReply: side: is missing"):
        judged(run, api)
    after.write_text("half a li", "utf-8")
    with pytest.raises(DataError, match="not a JSON object"):
        judged(run, api)
    for side in ("before", "after"):
        (run / "eval" / f"{side}_replies.jsonl").write_text("", "utf-8")
    with pytest.raises(ConfigError, match=r"evaluation\.replies was 0"):
        judged(run, api)
    assert api.seen == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "localhost:8000"], "--url must start with http"),
        (["--url", "https://me:secret@host"], "must hold no password"),
        (["--limit", "0"], "--limit: must be at least 1, got 0"),
        (["--timeout", "nan"], "--timeout: must be above 0"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, run: Path, capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        judge.main([str(run), "--url", "http://127.0.0.1:9", "--model", "m", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "secret" not in error


def test_the_key_is_sent_and_written_nowhere(api: Server, run: Path, ask: Ask) -> None:
    api.plan = french_judge
    arguments = (run, "--url", f"{api.url}/v1/", "--model", "m", "--key-variable", "MY_KEY")
    result = ask("judge", *arguments, MY_KEY=KEY)
    assert result.returncode == 0, result.stderr
    assert {header for _, header in api.seen} == {f"Bearer {KEY}"}
    assert "win rate of after" in result.stdout
    written = "".join(p.read_text("utf-8") for p in (run / "judge" / "m").iterdir())
    assert KEY not in written + result.stdout + result.stderr


def test_a_key_that_is_refused_or_missing(api: Server, run: Path, ask: Ask) -> None:
    api.plan = lambda *_: (401, f"Incorrect API key provided: {KEY}")
    arguments = (run, "--url", api.url, "--model", "m")
    result = ask("judge", *arguments, OPENAI_API_KEY=KEY)
    assert result.returncode == 2 and result.stderr.count("error: ") == 1
    assert "Incorrect API key provided: [key]" in result.stderr and KEY not in result.stderr
    result = ask("judge", *arguments, "--key-variable", "NO_SUCH_KEY")
    assert result.returncode == 2
    assert "error: --key-variable: the environment has no NO_SUCH_KEY" in result.stderr
