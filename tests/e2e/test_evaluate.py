"""scripts/evaluate.py on the demo model: stopped, started again, compared.

What loads no model runs in this process, the rest as a user runs it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from posttrain.base.errors import DataError
from posttrain.base.process import run_main
from posttrain.data.text import text_key
from posttrain.model.provenance import TrainedOn, write_record
from posttrain.scoring import evaluation
from posttrain.settings.strict_yaml import dump_yaml
from scripts import evaluate
from tests.helpers import (
    DEMO_DATA,
    DEMO_MODEL,
    ROOT,
    Capsys,
    demo_settings,
    make_adapter,
    read,
    rows,
    start_script,
    write_rows,
)
from tests.reliability.inside import succeed
from tests.reliability.test_interruptions import wait_for

PROBLEMS = DEMO_DATA / "problems_test.jsonl"
COUNT = 32
LIMIT = ["--limit", str(COUNT), "--max-new-tokens", "48", "--batch-size", "4", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in a folder of its own: with no run's config.yaml near it."""
    folder = tmp_path_factory.mktemp("models") / "nested" / "demo_model"
    return Path(shutil.copytree(DEMO_MODEL, folder))


@pytest.fixture(scope="module")
def request_(model: Path) -> list[str]:
    return ["--model", str(model), "--data", str(PROBLEMS), *LIMIT]


@pytest.fixture(scope="module")
def complete(request_: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that nothing interrupted; not to be written to."""
    folder = tmp_path_factory.mktemp("complete") / "greedy"
    result = succeed("evaluate", *request_, "--output", folder)
    assert "strict accuracy" in result.stdout and str(COUNT) in result.stdout
    return folder


@pytest.fixture
def copy(complete: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete, tmp_path / "copy"))


def lines(folder: Path) -> int:
    path = folder / "replies.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def called(*arguments: str | Path) -> int:
    """The exit code of the script in this process."""
    with pytest.raises(SystemExit) as left:
        run_main(lambda: evaluate.main([str(argument) for argument in arguments]))
    return int(left.value.code or 0)


def printed(capsys: Capsys, *arguments: str | Path) -> str:
    assert called(*arguments) == 0
    return capsys.readouterr().out


def refused(capsys: Capsys, *arguments: str | Path) -> str:
    """What the script prints where it must refuse; one line, no traceback, exit code 2."""
    assert called(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


# --- a whole evaluation ---------------------------------------------------------------------------


def test_report(complete: Path, model: Path) -> None:
    report = read(complete / "report.json")
    assert report["model"] == str(model) and report["dtype"] == "float32"
    assert report["temperature"] == 0 and report["trained_on"] == 0
    replies = rows(complete / "replies.jsonl")
    assert len(replies) == COUNT
    for name in ("strict", "tagged", "lenient", "format_rate", "truncated_rate"):
        actual = report["measures"][name]
        assert actual["value"] == sum(row[name] for row in replies) / COUNT
        assert actual["n"] == COUNT and actual["low"] <= actual["value"] <= actual["high"]
    assert report["measures"]["format_rate"]["value"] > 0.9  # the demo model knows the form


# --- interrupted ----------------------------------------------------------------------------------


def test_killed_evaluation_ends_in_the_same_report(
    request_: list[str], complete: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = start_script("evaluate", *request_, "--output", folder)
    wait_for(process, lambda: lines(folder) >= 8)  # they are kept in batches: this is the first
    process.kill()
    process.wait()
    kept = lines(folder)
    assert 8 <= kept < COUNT
    assert not (folder / "report.json").exists()
    with open(folder / "replies.jsonl", "ab") as file:  # what a kill while writing would leave
        file.write('{"question": "half a line, half a lett\u00e9'.encode()[:-1])
    result = succeed("evaluate", *request_, "--output", folder)
    assert f"{kept} replies kept from an earlier call" in result.stdout
    assert (folder / "report.json").read_bytes() == (complete / "report.json").read_bytes()
    assert (folder / "replies.jsonl").read_bytes() == (complete / "replies.jsonl").read_bytes()


def test_part_of_a_batch_is_not_sampled_anew_on_its_own(
    request_: list[str], tmp_path: Path
) -> None:
    """Sampled replies depend on what is in the batch; a cut-off file must end as a whole one."""
    sampled = [*request_, "--limit", "24", "--samples", "2", "--temperature", "1.2"]
    folder = tmp_path / "sampled"
    succeed("evaluate", *sampled, "--output", folder)
    report, replies = ((folder / n).read_bytes() for n in ("report.json", "replies.jsonl"))
    assert {"pass@1", "pass@2", "majority_vote"} <= set(json.loads(report)["measures"])
    kept = b"".join(replies.splitlines(True)[:20])  # 16 are one batch, 8 the next
    (folder / "replies.jsonl").write_bytes(kept + b'{"question": "half a li')
    (folder / "report.json").unlink()
    succeed("evaluate", *sampled, "--output", folder)
    assert (folder / "report.json").read_bytes() == report
    assert (folder / "replies.jsonl").read_bytes() == replies


def test_a_finished_evaluation_loads_no_model(
    request_: list[str], copy: Path, capsys: Capsys
) -> None:
    output = printed(capsys, *request_, "--output", copy)
    assert "Loading" not in output and "strict accuracy" in output


def test_a_line_that_is_no_reply_is_named(request_: list[str], copy: Path, capsys: Capsys) -> None:
    replies = (copy / "replies.jsonl").read_text(encoding="utf-8").split("\n")
    replies[3] = '{"question": "q"}'
    (copy / "replies.jsonl").write_text("\n".join(replies), encoding="utf-8")
    output = refused(capsys, *request_, "--output", copy)
    assert "replies.jsonl: row 4 is not a Reply: answer: is missing" in output


@pytest.mark.parametrize(
    ("change", "output"),
    [
        (["--limit", "16"], "fingerprint was"),
        (["--seed", "1"], "seed was 0, now 1"),
        (["--max-new-tokens", "50"], "max_new_tokens was 48, now 50"),
        (["--system", "Be brief."], "now 'Be brief.'"),
        (["--dtype", "bfloat16"], "dtype was 'float32', now 'bfloat16'"),
        (["--load-in-4bit"], "load_in_4bit was False, now True"),
        (["--stop-at-answer"], "stop_at_answer was False, now True"),
    ],
)
def test_another_request_into_the_same_folder_is_refused(
    request_: list[str], copy: Path, change: list[str], output: str, capsys: Capsys
) -> None:
    files = {path: path.read_bytes() for path in copy.iterdir()}
    message = refused(capsys, *request_, *change, "--output", copy)
    assert message.startswith(f"error: {copy} holds another evaluation") and output in message
    assert {path: path.read_bytes() for path in copy.iterdir()} == files


def test_a_retrained_model_in_the_same_place_is_another_request(
    request_: list[str], model: Path, copy: Path, capsys: Capsys
) -> None:
    weights = model / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        assert "weights was" in refused(capsys, *request_, "--output", copy)
    finally:
        weights.write_bytes(original)


# --- without the model ----------------------------------------------------------------------------


def test_rescore_gives_the_same_measures_and_leaves_the_file_alone(
    copy: Path, capsys: Capsys
) -> None:
    replies = copy / "replies.jsonl"
    original = rows(replies)
    rescore = ["--rescore", replies]
    expected = printed(capsys, *rescore)
    strict = read(copy / "report.json")["measures"]["strict"]["value"]
    assert f"strict accuracy    {strict:.1%}" in expected
    wrong = [{**row, "strict": 0.0, "tagged": 0.0, "lenient": 0.0} for row in original]
    text = write_rows(replies, *wrong).read_text("utf-8") + '{"question": "cut off'
    replies.write_text(text, encoding="utf-8")
    assert printed(capsys, *rescore) == expected
    assert replies.read_text(encoding="utf-8") == text
    replies.write_text(text[: text.rindex("\n")], encoding="utf-8")  # whole, without a line end
    assert printed(capsys, *rescore) == expected


def test_compare_prints_the_paired_table(complete: Path, copy: Path, capsys: Capsys) -> None:
    replies = rows(copy / "replies.jsonl")
    wrong = [row for row in replies if not row["strict"]]
    assert len(wrong) >= 8
    for row in wrong[:8]:
        row["reply"] = f"<answer>{row['answer']}</answer>"
    write_rows(copy / "replies.jsonl", *replies)
    output = printed(capsys, "--compare", complete / "report.json", copy / "report.json")
    (strict,) = (x for x in output.splitlines() if "strict accuracy" in x)
    assert "+25.0 points" in strict and f"(n = {COUNT})" in output
    assert "0.0078" in strict  # 8 of 8 changed one way: 2 / 2^8
    assert printed(capsys, "--compare", complete, copy) == output
    same = printed(capsys, "--compare", complete, complete)
    assert "+0.0 points [-10.7, +0.0]" in same  # of 32 problems; of others some may change

    write_rows(copy / "replies.jsonl", *replies[1:])
    output = refused(capsys, "--compare", complete, copy)
    assert "do not answer the same problems" in output and str(copy) in output
    (copy / "replies.jsonl").write_text("")
    assert "holds no replies" in refused(capsys, "--compare", complete, copy)
    assert "nowhere: no such report" in refused(capsys, "--compare", complete, "nowhere")
    assert "holds no replies" in refused(capsys, "--rescore", copy / "replies.jsonl")
    assert "cannot be read" in refused(capsys, "--rescore", copy / "nothing.jsonl")


# --- guards ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as scripts/grpo.py leaves it, whose training file shares 3 test questions."""
    run = tmp_path_factory.mktemp("run")
    shared = rows(PROBLEMS)[:3]
    shared[0]["question"] = shared[0]["question"].upper().replace(" ", "  ")
    write_record(run, TrainedOn({text_key(row["question"]) for row in shared}))
    settings = demo_settings("grpo", f"model.name={model}", "prompt.system=Answer.")
    (run / "config.yaml").write_text(dump_yaml(settings.model_dump()), encoding="utf-8")
    adapter = make_adapter(model, run / "adapter")
    shutil.copytree(adapter, run / "checkpoints" / "checkpoint-2")
    return run


@pytest.mark.parametrize("which", ["adapter", "checkpoints/checkpoint-2"])
def test_questions_that_were_trained_on_are_refused(
    trained: Path, which: str, tmp_path: Path, capsys: Capsys
) -> None:
    scored = ["--model", trained / which, "--data", PROBLEMS, "--limit", "8"]
    output = refused(capsys, *scored, "--output", tmp_path / "out")
    assert "3 of 8 questions were trained on by" in output and "--allow-trained-on" in output
    assert not (tmp_path / "out").exists()


def test_override_scores_them_and_says_so(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    """Also what else an adapter's run decides: its system prompt and its precision."""
    folder = tmp_path / "out"
    adapter = Path(os.path.relpath(trained / "adapter", tmp_path))  # from another directory
    monkeypatch.chdir(tmp_path)
    given = ["--model", f"./{adapter}/", "--data", PROBLEMS, "--limit", "8"]
    few = ["--max-new-tokens", "8", "--allow-trained-on", "--output", folder]
    assert "warning: 3 of these questions were trained on" in printed(capsys, *given, *few)
    expected = {"trained_on": 3, "system": "Answer.", "dtype": "float32", "load_in_4bit": False}
    assert read(folder / "report.json").items() >= expected.items()


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "--model and --data are needed"),
        (["--model", "m"], "--model and --data are needed"),
        (["--samples", "0"], "--samples: must be at least 1, got 0"),
        (["--samples", "4", "--temperature", "0"], "greedy replies are alike"),
        (["--temperature", "-1"], "--temperature: must be 0 or more, got -1"),
        (["--temperature", "nan"], "--temperature: must be 0 or more, got nan"),
        (["--language", "de"], "invalid choice: 'de'"),
        (["--model", "./nowhere"], "there is no folder './nowhere'"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        pytest.param(
            ["--model", "no/such-model"],
            "cannot load the model 'no/such-model'",
            marks=pytest.mark.long,  # only Unsloth can say so
        ),
    ],
)
def test_bad_arguments(
    arguments: list[str], output: str, model: Path, tmp_path: Path, capsys: Capsys
) -> None:
    given = list(arguments)
    if arguments and arguments != ["--model", "m"]:
        given += [] if "--model" in arguments else ["--model", str(model)]
        given += [] if "--data" in arguments else ["--data", str(PROBLEMS)]
    assert output in refused(capsys, *given, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("outputs/g3/gguf/g3-q8_0.gguf", "g3-q8_0-problems_test"),
        ("outputs/g3/gguf/other.gguf", "g3-other-problems_test"),
        ("outputs/g3/adapter", "g3-adapter-problems_test"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen-Qwen2.5-0.5B-Instruct-problems_test"),
    ],
)
def test_the_default_folder_is_named_after_model_and_data(model: str, name: str) -> None:
    assert evaluation.default_folder(model, str(PROBLEMS)) == ROOT / "outputs" / "eval" / name


def test_a_runs_own_problems_are_read_by_its_columns(tmp_path: Path) -> None:
    """As the command that a run names next does; another file has the usual ones."""
    mine = write_rows(tmp_path / "mine.jsonl", {"problem": "What is 2 + 2?", "solution": "4"})
    other = write_rows(tmp_path / "other.jsonl", {"question": "What is 3 + 3?", "answer": "6"})
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    columns = "data.columns={question: problem, answer: solution}"
    settings = demo_settings("grpo", f"data.eval.path={mine}", columns)
    (run / "config.yaml").write_text(dump_yaml(settings.model_dump()), encoding="utf-8")
    config = evaluation.config_of(str(run / "adapter"), str(mine), None)
    for path, answer in ((mine, "4"), (other, "6")):
        problems = evaluation.load_problems(str(path), config)
        assert [problem.answer for problem in problems] == [answer]
    with pytest.raises(DataError, match="there is no column 'question'"):
        evaluation.load_problems(str(mine), {})
