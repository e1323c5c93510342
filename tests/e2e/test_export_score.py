"""What ships, scored: as by hand, kept, paired with the adapter's answers, for both methods."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.base import process
from posttrain.base.errors import ConfigError
from posttrain.export import score
from posttrain.report.export_scores import TITLE
from scripts import evaluate, export
from tests.helpers import DEMO_DATA, DEMO_MODEL, Capsys, read, rows, run_script
from tests.reliability.inside import leave_with, succeed

PARITY = "parity: {new_tokens: 24}"
TO = "[merged_16bit, 'gguf:q8_0']"
COUNT = 12
pytestmark = pytest.mark.usefixtures("tree")


def train(method: str, folder: Path, *more: str, to: str = TO) -> str:
    """Two steps of the demo, exported and scored as its settings say; returns what that printed.

    The export starts in a fork that has imported the libraries, and its scoring as a user's."""
    printed: list[str] = []

    def start(script: str, *given: str) -> int:
        result = run_script(script, *given)
        printed.append(result.stdout)
        return result.returncode

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "run_script", start)
        exports = f"export={{to: {to}, score: true, {PARITY}}}"
        assert leave_with(method, folder, "training.max_steps=2", *more, exports) == 0, printed
    return printed[-1]


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A GRPO run with two scored files and what it printed; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "grpo"
    few = f"evaluation={{limit: {COUNT}, max_new_tokens: 48}}"
    return folder, train("grpo", folder, "training.max_completion_length=48", few)


def score_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> tuple[dict[str, Any], str]:
    """The scores of both files, and what their command printed."""
    argv = ["score", str(run), str(DEMO_MODEL), "merged_16bit", "gguf:q8_0"]
    monkeypatch.setattr(sys, "argv", argv)
    assert score.main() == 0
    return scores(run), capsys.readouterr().out


def scores(run: Path) -> dict[str, Any]:
    record = read(run / "export.json")
    return {name: entry["score"] for name, entry in record["exports"].items()}


def by_question(path: Path) -> list[dict[str, Any]]:
    return sorted(rows(path), key=lambda row: str(row["question"]))


@pytest.mark.parametrize("target", ["merged_16bit", "gguf:q8_0"])
def test_a_score_is_that_of_an_evaluation_by_hand(
    target: str, grpo: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = grpo
    entry = read(run / "export.json")["exports"][target]
    by_hand = tmp_path / "by_hand"
    given = ["--model", str(run / entry["path"]), "--limit", str(COUNT)]
    given += ["--data", str(DEMO_DATA / "problems_test.jsonl")]
    assert evaluate.main([*given, "--max-new-tokens", "48", "--output", str(by_hand)]) == 0
    kept = run / "eval" / "exports" / target.replace(":", "-") / "replies.jsonl"
    assert by_question(kept) == by_question(by_hand / "replies.jsonl")
    report = read(by_hand / "report.json")
    score = entry["score"]
    assert score["measures"] == report["measures"] and score["n"] == COUNT
    assert report["weights"]
    adapter, file = by_question(run / "eval" / "after.jsonl"), by_question(kept)
    pairs = [(a["strict"], b["strict"]) for a, b in zip(adapter, file, strict=True)]
    assert [a["question"] for a in adapter] == [b["question"] for b in file]
    assert score["gained"] == sum(b > a for a, b in pairs)
    assert score["lost"] == sum(b < a for a, b in pairs)
    assert score["right"] == sum(a for a, _ in pairs) and score["tokens_per_second"] > 0


def test_it_is_shown_where_the_headline_is(grpo: tuple[Path, str]) -> None:
    run, output = grpo
    page, card = ((run / name).read_text("utf-8") for name in ("report.html", "README.md"))
    for text in (output, page, card):
        assert TITLE in text and "gguf:q8_0" in text
        assert "No file lost significantly against the adapter" in text


def test_what_a_kill_left_out_or_other_weights_answered_is_asked_again(
    grpo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    run = Path(shutil.copytree(grpo[0], tmp_path / "moved"))
    cut = run / "eval" / "exports" / "gguf-q8_0" / "replies.jsonl"
    cut.write_bytes(cut.read_bytes()[:-20])
    requested = run / "eval" / "exports" / "merged_16bit" / "request.json"
    requested.write_text(json.dumps(read(requested) | {"weights": "0" * 64}), encoding="utf-8")
    again, output = score_again(run, monkeypatch, capsys)
    of_merged, _, of_gguf = output.partition("gguf:q8_0")
    assert "were to another request" in of_merged
    assert f"{COUNT - 1} replies kept" in of_gguf and TITLE in of_gguf
    before = scores(grpo[0])
    for each in (*again.values(), *before.values()):
        del each["tokens_per_second"]
    assert again == before
    for path in grpo[0].glob("eval/exports/*/*"):
        assert (run / path.relative_to(grpo[0])).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_the_adapter_of_a_4_bit_policy_is_also_scored_on_16_bit_weights(
    grpo: tuple[Path, str], tmp_path: Path
) -> None:
    """The run's config says 4-bit here; its adapter on the whole weights is that of the run."""
    run = Path(shutil.copytree(grpo[0], tmp_path / "run"))
    config = (run / "config.yaml").read_text(encoding="utf-8")
    four_bit = config.replace("load_in_4bit: false", "load_in_4bit: true")
    (run / "config.yaml").write_text(four_bit, encoding="utf-8")
    result = succeed("export", run, "--to", "merged_16bit", "--score")
    assert result.stdout.count("Loading") == 1 and "adapter on 16-bit weights" in result.stdout
    record = read(run / "export.json")
    after = read(run / "eval" / "after.json")
    score = record["adapter_16bit"]["score"]
    assert score["measures"]["strict"] == after["strict"]
    assert score["gained"] == score["lost"] == 0
    again = succeed("export", run, "--to", "merged_16bit", "--score")
    assert "Loading" not in again.stdout


@pytest.mark.long
def test_text_answers_are_scored_by_the_rewards_of_the_run(tmp_path: Path) -> None:
    reward = "def long(completions, answer, **columns):\n"
    reward += "    return [float(len(c[-1]['content'])) for c in completions]\n"
    (tmp_path / "mine.py").write_text(reward)
    run = tmp_path / "text"
    train(
        *("grpo", run, "data.answers=text", f"rewards={{'{tmp_path}/mine.py:long': 0.5}}"),
        *("evaluation={limit: 16, max_new_tokens: 24}", "health.stop_on=[]"),
    )
    score = scores(run)["gguf:q8_0"]
    replies = rows(run / "eval" / "exports" / "gguf-q8_0" / "replies.jsonl")
    assert score["main"] == "total_reward" and score["right"] is None and score["n"] == 16
    total = sum(0.5 * len(row["reply"]) for row in replies)
    assert score["measures"]["total_reward"]["value"] == pytest.approx(total / 16)

    # By another reward than that of the training, both sides are scored again.
    (tmp_path / "mine.py").write_text(reward.replace("float(len(", "-float(len("))
    again = succeed("export", run, "--to", "gguf:q8_0", "--score")
    assert "the rewards changed since the run" in again.stdout and "Loading" not in again.stdout
    mirrored = scores(run)["gguf:q8_0"]
    assert mirrored["measures"]["total_reward"]["value"] == pytest.approx(-total / 16)
    assert (mirrored["gained"], mirrored["lost"]) == (score["lost"], score["gained"])


@pytest.mark.long
def test_files_of_a_dpo_run_are_scored_by_their_replies(tmp_path: Path) -> None:
    run = tmp_path / "dpo"
    few = "evaluation={limit: 12, replies: 6, max_new_tokens: 24}"
    output = train("dpo", run, "data.holdout=12", few)
    assert TITLE in output
    adapter = rows(run / "eval" / "after_replies.jsonl")
    for target in ("merged_16bit", "gguf-q8_0"):
        replies = rows(run / "eval" / "exports" / target / "replies.jsonl")[:6]
        actual = scores(run)[target.replace("gguf-", "gguf:")]
        french = [
            (a["in_language"], b["in_language"]) for a, b in zip(adapter, replies, strict=True)
        ]
        assert [reply["prompt"] for reply in replies] == [reply["prompt"] for reply in adapter]
        assert actual["main"] == "french_share" and actual["n"] == 6
        assert actual["measures"]["french_share"]["value"] == sum(b for _, b in french) / 6
        assert actual["right"] == sum(a for a, _ in french)
        assert actual["lost"] == sum(a and not b for a, b in french)
        assert set(actual["against_adapter"]) == set(actual["measures"])
        assert not set(actual["measures"]) & {"reward_accuracy", "kl_per_token"}

    # Half a line, which a kill left, is answered again and nothing else.
    path = run / "eval" / "exports" / "gguf-q8_0" / "replies.jsonl"
    complete = path.read_text(encoding="utf-8")
    path.write_text(complete[:-20], encoding="utf-8")
    succeed("export", run, "--to", "gguf:q8_0", "--score")
    assert path.read_text(encoding="utf-8") == complete

    # Without replies there is nothing to compare: said before anything is exported.
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("  replies: 6", "  replies: 0"), "utf-8")
    with pytest.raises(ConfigError, match=r"trained with evaluation\.replies=0"):
        score.check(run)


@pytest.mark.long
def test_files_of_an_sft_run_are_scored_on_its_problems(tmp_path: Path) -> None:
    run = tmp_path / "sft"
    train("sft", run, "evaluation={limit: 24, max_new_tokens: 48}", to="[merged_16bit]")
    record = read(run / "export.json")
    made = record["exports"]["merged_16bit"]
    assert made["proven"] and made["score"]["main"] == "strict" and made["score"]["n"] == 24
    answered = rows(run / "eval" / "after.jsonl")
    assert made["score"]["right"] == sum(row["strict"] for row in answered)
    assert len(rows(run / "eval" / "exports" / "merged_16bit" / "replies.jsonl")) == 24
    assert TITLE in (run / "README.md").read_text("utf-8")

    # The same run, had it no problems: said before anything is exported.
    config = run / "config.yaml"
    text = config.read_text("utf-8").splitlines()
    start = next(n for n, line in enumerate(text) if line.startswith("  problems:"))
    end = next(n for n, line in enumerate(text[start + 1 :], start + 1) if line[:4].strip())
    config.write_text("\n".join([*text[:start], "  problems: null", *text[end:]]), "utf-8")
    with pytest.raises(ConfigError, match=r"was trained without data\.problems, so there are no"):
        score.check(run)
    result = run_script("export", run, "--to", "merged_16bit", "--score")
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1


def test_what_was_not_made_is_not_scored_and_what_was_scored_is_not_loaded(
    grpo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """As after merged weights that were not proven."""
    run = Path(shutil.copytree(grpo[0], tmp_path / "run"))
    record = read(run / "export.json")
    del record["exports"]["gguf:q8_0"]
    (run / "export.json").write_text(json.dumps(record), encoding="utf-8")
    result, output = score_again(run, monkeypatch, capsys)
    assert list(result) == ["merged_16bit"] and "Loading" not in output


def test_without_a_finished_run_it_is_refused(tmp_path: Path, grpo: tuple[Path, str]) -> None:
    given = [str(grpo[0] / "adapter"), "--output", str(tmp_path / "elsewhere")]
    with pytest.raises(ConfigError, match="not a finished run folder"):
        export.main([*given, "--to", "merged_16bit", "--score"])
    assert not (tmp_path / "elsewhere").exists()
    run = Path(shutil.copytree(grpo[0], tmp_path / "trained_on"))
    (run / "eval" / "comparison.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no eval/comparison.json"):
        score.check(run)
