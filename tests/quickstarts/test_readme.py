"""README and docs: every command runs in a copy of the project, every name and figure is right.

Commands run on local data, with few steps. Those of FOLLOWED pages run in tests of their pages.
"""

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eval import figures
from eval.measures import Change
from eval.seeds import SeedMean
from eval.stats import Difference
from posttrain.base.errors import ConfigError
from posttrain.model.llama_server import serve
from posttrain.report import seeds
from posttrain.report.tables import as_text, compared
from posttrain.run.results import from_json
from posttrain.settings.command import SETTINGS, parse_command_line
from posttrain.settings.extra import config_fields
from posttrain.settings.help import describe
from posttrain.settings.strict_yaml import parse_yaml
from tests.helpers import ROOT, copy_project, read
from tests.quickstarts.pages import (
    DOCS,
    FOLLOWED,
    PAGES,
    README,
    blocks,
    commands,
    inline_commands,
    prose,
    text_of,
)
from tests.real.export_proof import KINDS, faults_of

REAL = ROOT / "tests" / "real" / "results"
ALL = "\n".join(text_of(page) for page in PAGES)
COMMANDS = list(
    dict.fromkeys(c for page in PAGES if page.name not in FOLLOWED for c in commands(text_of(page)))
)
# Where the demo model and local files stand for a model and data of the hub.
LOCAL_PAIRS = (
    "--dry-run model.name=assets/demo_model data.holdout=20 data.validation=4 evaluation.also=[] "
    "data.train.path=assets/demo_data/preferences.jsonl data.columns.prompt=prompt"
)
LOCAL_PROBLEMS = (
    "--dry-run model.name=assets/demo_model data.train.path=assets/demo_data/problems_train.jsonl "
    "data.eval.path=assets/demo_data/problems_test.jsonl data.train.subset=null "
    "data.eval.subset=null"
)
SHORT_GRPO = "training.max_steps=4 training.save_steps=2 evaluation.limit=8"
STOPPED = "./run grpo --config configs/grpo_demo.yaml --output outputs/stopped"
MACHINES = ("16gb", "t4", "cpu")
ADDED = {
    "./run demo": "training.max_steps=12 evaluation.limit=8",  # after 2 steps it still guesses
    "./run demo training.max_steps=0": "evaluation.limit=8",
    **{f"./run dpo --config configs/dpo_french_{card}.yaml": LOCAL_PAIRS for card in MACHINES},
    **{f"./run grpo --config configs/grpo_gsm8k_{card}.yaml": LOCAL_PROBLEMS for card in MACHINES},
    "./run grpo --config configs/grpo_gsm8k_16gb.yaml --dry-run": LOCAL_PROBLEMS,
    "./run grpo --config configs/grpo_gsm8k_16gb.yaml run.max_minutes=300": LOCAL_PROBLEMS,
    STOPPED: SHORT_GRPO,
    f"{STOPPED} run.max_minutes=0.2": f"{SHORT_GRPO} run.max_minutes=0.001",
    "./run repeat grpo --config configs/grpo_demo.yaml --seeds 1,2,3": (
        "training.max_steps=2 evaluation.limit=8"
    ),
    "./run grpo --config configs/grpo_demo.yaml run.name=rate_1e-4 training.learning_rate=1e-4 "
    "data.validation=200 run.score=false": "training.max_steps=2",
    "./run grpo --config configs/grpo_demo.yaml run.name=validated data.validation=200 "
    "evaluation.every=5 run.patience=3": "training.max_steps=10 evaluation.limit=8",
}
REPLACED = {
    "Qwen/Qwen2.5-0.5B-Instruct": "assets/demo_model",
    "outputs/grpo_gsm8k_16gb": "outputs/grpo_demo",
    "outputs/dpo_french_16gb": "outputs/dpo_demo",
    "--data gsm8k": "--data assets/demo_data/problems_test.jsonl --limit 4",
    "--data mgsm-fr": "--data assets/demo_data/problems_test.jsonl --limit 4",
    "problems_test.jsonl": "problems_test.jsonl --limit 4",
    "gguf:q4_k_m": "gguf:f16",  # which needs no compiler
    "--model MODEL": "--model judge",
    "my_problems.jsonl": "assets/demo_data/problems_train.jsonl",
    "my_test.jsonl": "assets/demo_data/problems_test.jsonl",
    "=my_pairs.jsonl": "=assets/demo_data/preferences.jsonl",
}
NOT_RUN_HERE = {
    "./run test",  # this is it
    "./run test --all",
    "./run python -m tests.real.weights smollm2",  # a download: tests/real/test_weights.py
    "./run chat outputs/grpo_demo --web",  # until Ctrl-C: tests/e2e/test_chat.py
}
# Files that the reader makes or a run leaves, and what a cloud has.
NOT_OF_THE_PROJECT = re.compile(
    r"(my_|A/|B/|step-NNN|~/|\$|/workspace)|^(examples|replies|report|config|environment|export|metrics|"
    r"samples|health|before|after|comparison|seeds|validation|trained_on)\.\w+$|^(health|checkpoints|data|eval|adapter|gguf|"
    r"merged_16bit|plots|wandb|outputs)/"
)


def test_pages_are_short() -> None:
    assert len(text_of(README).splitlines()) <= 120
    assert len(text_of(ROOT / "AGENTS.md").splitlines()) < 80
    assert sum(len(text_of(page).split()) for page in DOCS) <= 8000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_its_command(page: Path) -> None:
    title, first = text_of(page).split("\n\n")[:2]
    assert title.startswith("# ")
    if page is README:  # after one sentence
        first = text_of(page).split("\n\n")[2]
    assert re.match(r"```(bash|sh)\n", first)


# --- commands -----------------------------------------------------------------------------------


class Parsed(Exception):
    """A command line that argparse took."""


def check_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is one of ./run's, and its script takes its arguments."""
    first, name, *words = shlex.split(command)
    assert first == "./run", command
    for word in words:
        if word.endswith((".yaml", ".jsonl")) and "=" not in word:
            assert (ROOT / word).is_file(), word
    if name == "python":  # -m MODULE ARGUMENTS, or -m MODULE OPTIONS scripts/NAME.py ARGUMENTS
        assert importlib.util.find_spec(words[1]), command
        index = next((i for i, word in enumerate(words) if word.startswith("scripts/")), None)
        if index is None:
            return
        name, words = Path(words[index]).stem, words[index + 1 :]
    if name == "demo":
        for script in ("grpo", "dpo"):
            demo = f"./run {script} --config configs/{script}_demo.yaml"
            check_parses(f"{demo} {shlex.join(words)}", monkeypatch)
    elif name == "test":
        assert all(word == "--all" or (ROOT / word).is_file() for word in words), command
    else:
        script = importlib.import_module(f"scripts.{name}")
        if name in SETTINGS and words[:1] != ["--help"]:
            parse_command_line(SETTINGS[name], "", words)
            return
        own = argparse.ArgumentParser.parse_known_args

        def stop_here(
            self: argparse.ArgumentParser, args: Any = None, namespace: Any = None
        ) -> Any:
            _, rest = own(self, words, namespace)
            raise Parsed(rest)

        with monkeypatch.context() as patched:
            patched.setattr(argparse.ArgumentParser, "parse_known_args", stop_here)
            with pytest.raises((Parsed, SystemExit)) as caught:
                script.main()
        if words[:1] == ["--help"]:
            assert isinstance(caught.value, SystemExit) and caught.value.code == 0
        else:
            assert isinstance(caught.value, Parsed), command
            rest = caught.value.args[0]  # of positionals around options, argparse takes a part
            assert not [word for word in rest if word.startswith("-")], command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_parses(command, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_inline_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in inline_commands(text_of(page)):
        check_parses(command.replace("./run --vllm ", "./run "), monkeypatch)


def test_inline_commands_are_seen() -> None:
    assert len(inline_commands(text_of(README))) > 8
    assert inline_commands("`./run`, `./run sft`, `./run export RUN --push A/B`, `ls x`") == []


@pytest.mark.parametrize(
    "wrong",
    [
        "./run grpo --config configs/grpo_demo.yaml training.max_stepz=1",
        "./run dpo --config configs/no_such.yaml",
        "./run evaluate --modle x --data gsm8k",
        "./run report outputs/grpo_demo --jsn",
        "./run nothing",
    ],
)
def test_what_does_not_parse_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((ConfigError, SystemExit, ModuleNotFoundError, AssertionError)):
        check_parses(wrong, monkeypatch)


def test_every_command_is_run_below_or_named_above() -> None:
    assert len(COMMANDS) > 20
    assert set(ADDED) | NOT_RUN_HERE <= set(COMMANDS)


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.skipif(
    not (ROOT / ".venv" / "installed.lock").exists(), reason="not installed by ./run"
)
def test_every_command_runs(tmp_path: Path) -> None:
    copy = copy_project(tmp_path / "project")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

    def run(command: str) -> str:
        result = subprocess.run(
            ["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True
        )
        output = f"{command}\n{result.stdout}\n{result.stderr}"
        # Without the hub in reach, ./run doctor answers 2, and says so.
        expected = (0, 2) if command == "./run doctor" else (0,)
        assert result.returncode in expected, output
        return output

    commands = [command for command in COMMANDS if command not in NOT_RUN_HERE]
    commands.sort(key=lambda command: command != "./run demo")  # what others need comes first
    served = [command for command in commands if "http://" in command]
    for command in commands:
        if command in served:
            continue
        output = run(_here(command))
        if command.startswith(f"{STOPPED} "):
            assert "Stopped at step" in output
        elif command == STOPPED:
            assert "Resuming from step" in output
    (gguf,) = (copy / "outputs" / "grpo_demo" / "gguf").glob("*q8_0.gguf")
    with serve(gguf) as url:
        for command in served:
            run(re.sub(r"http://[\w.:]+", url, _here(command)))


def _here(command: str) -> str:
    added = ADDED.get(command, "")
    for there, here in REPLACED.items():
        if here not in command:
            command = command.replace(there, here)
    return f"{command} {added}".strip()


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = text_of(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in slugs, f"{page.name} links to {target}"
    for span in re.findall(r"`([^`\n]+)`", prose(text)):
        for word in span.split():
            path = word.partition(":")[0]
            looks_like_one = re.fullmatch(
                r"[\w./*-]+\.(py|yaml|jsonl?|md|png|html)|[\w./-]+/", path
            )
            if looks_like_one and not NOT_OF_THE_PROJECT.search(path):
                actual = (ROOT / path).exists() or (page.parent / path).exists()
                assert actual, f"{page.name} names {path}"


def known_settings() -> set[str]:
    return {path for settings in SETTINGS.values() for path in describe(settings)}


def is_setting(path: str) -> bool:
    known = known_settings()
    if path.startswith("training.extra."):
        return path.rpartition(".")[2] in config_fields("trl/trainer/grpo_config.py:GRPOConfig")
    return path in known or any(name.startswith(f"{path}.") for name in known)


def leaves(values: Any, path: str = "") -> list[str]:
    """The paths of a YAML's values, down to a list or a setting of the project."""
    if not isinstance(values, dict) or path in known_settings():
        return [path]
    return [
        leaf for key, value in values.items() for leaf in leaves(value, f"{path}.{key}".strip("."))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    text = text_of(page)
    sections = {name for settings in SETTINGS.values() for name in settings.model_fields}
    files = r"(?!json|jsonl|yaml|py|html|md)"
    named = re.compile(rf"(?<![\w/.])((?:{'|'.join(sections)})\.{files}[a-z]\w*(?:\.[a-z]\w*)*)")
    spans = re.findall(r"`([^`\n]+)`", prose(text)) + list(commands(text))
    for path in (path for span in spans for path in named.findall(span)):
        assert is_setting(path), f"{page.name} names {path}"
    for block in blocks(text, "yaml"):
        for path in leaves(parse_yaml(block, page.name)):
            assert is_setting(path), f"{page.name} sets {path}"


def test_a_setting_that_is_gone_is_found() -> None:
    assert is_setting("training") and is_setting("export.parity") and is_setting("data.train.path")
    assert not is_setting("training.beta2") and not is_setting("datas")


def test_every_option_that_is_named_exists() -> None:
    sources = [*(ROOT / "scripts").glob("*.py"), ROOT / "posttrain/settings/command.py"]
    sources.append(ROOT / "run")
    known = {o for source in sources for o in re.findall(r"--[a-z][\w-]+", text_of(source))}
    for span in re.findall(r"`([^`\n]+)`", prose(ALL)):
        if not span.startswith(("docker ", "sky ", "vllm ")):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]+", span):
                assert option in known, option


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in text_of(README), page.name


# --- figures ------------------------------------------------------------------------------------


def result(name: str) -> Any:
    return read(ROOT / "bench" / "results" / f"{name}.json")


def test_the_table_is_that_of_the_measured_demo() -> None:
    (shown,) = blocks(text_of(ROOT / "docs" / "demo.md"), "text")
    runs = [
        compared(from_json(dict[str, Change], own), name)
        for name, own in result("demo_cpu").items()
    ]
    measured = iter(as_text(runs, width=80).splitlines())
    assert len(shown.splitlines()) > 12
    for line in shown.splitlines():  # in this order; some rows are left out
        assert line in measured, line


def line(name: str, what: str, sides: Iterable[str], change: Difference) -> str:
    """A row of the first table."""
    return f"| {' | '.join([what, *sides, figures.change(name, change)])} |"


def test_the_first_table_has_the_demo_of_three_seeds() -> None:
    runs, repeated = result("demo_cpu"), result("demo_seeds_cpu")
    for run, name, what in (
        ("grpo_demo", "strict", "strict accuracy, {} problems"),
        ("dpo_demo", "reward_accuracy", "preference accuracy, {} pairs"),
        ("dpo_demo", "french_share", "replies in French, {} prompts"),
    ):
        values = repeated[run]["measures"][name]
        assert repeated[run]["seeds"] == [1, 2, 3]
        sides = (seeds.spread(name, SeedMean(**values[side])) for side in ("before", "after"))
        over = values["difference"]
        change = Difference(over["mean"], over["low"], over["high"])
        what = what.format(runs[run][name]["n"])
        assert line(name, what, sides, change) in text_of(README)


def test_the_first_table_has_the_real_model() -> None:
    after_comment = text_of(README).partition("<!-- real results -->\n\n| model")[2]
    results = read(REAL / "cold_start.json")
    assert "Qwen2.5-Coder-0.5B-Instruct" in results["model"]
    for name in ("strict", "lenient", "format_rate"):
        change = from_json(Change, results["all_stages"][name])
        sides = (figures.plain(name, side.value) for side in (change.before, change.after))
        what = f"{figures.label(name)}, {change.n} problems"
        assert line(name, what, sides, change) in after_comment


@pytest.mark.parametrize(
    ("file", "run", "names"),
    [
        ("french", "french-qwen-coder", ("reward_accuracy", "mgsm_fr/lenient", "gsm8k/lenient")),
        ("smollm2_french", "french-smollm2", ("reward_accuracy",)),
        ("smollm2_grpo", "smollm2_grpo", ("format_rate", "strict")),
        ("own_samples", "own_samples", ("reward_accuracy", "gsm8k/lenient")),
    ],
)
def test_the_first_table_has_the_other_real_runs(file: str, run: str, names: list[str]) -> None:
    results = read(REAL / f"{file}.json")[run]
    for name in names:
        unit = "pairs" if name == "reward_accuracy" else "problems"
        change = from_json(Difference, results["change"][name])
        sides = [figures.plain(name, results[side][name]["value"]) for side in ("before", "after")]
        what = f"{figures.label(name)}, {change.n} {unit}"
        assert line(name, what, sides, change) in text_of(README)


def interval(share: dict[str, float]) -> str:
    return "{:.1f}% [{:.1f}, {:.1f}]".format(*(100 * share[k] for k in ("value", "low", "high")))


def test_the_page_on_evaluation_has_the_untrained_models() -> None:
    page = text_of(ROOT / "docs" / "evaluation.md")
    results = read(REAL / "untrained.json")
    models = {"smollm2": "SmolLM2-135M-Instruct", "qwen-coder": "Qwen2.5-Coder-0.5B-Instruct"}
    for name, model in models.items():
        measured = [results[f"{name}-{by}"]["measures"] for by in ("transformers", "llama.cpp")]
        assert all(each["strict"]["value"] == 0 and each["strict"]["n"] == 400 for each in measured)
        cells = [interval(each["lenient"]) for each in measured]
        assert f"| {model} | {' | '.join(cells)} |" in page


def test_the_page_on_stages_has_the_real_model() -> None:
    page = text_of(ROOT / "docs" / "stages.md").partition("<!-- real results -->")[2]
    results = read(REAL / "cold_start.json")
    for name in ("format_rate", "strict", "lenient"):
        sides = [results["sft"][name]["before"], results["sft"][name]["after"]]
        sides.append(results["all_stages"][name]["after"])
        cells = " | ".join(interval(side) for side in sides)
        assert f"| {figures.label(name)} | {cells} |" in page
    assert f"| {results['sft']['strict']['before']['n']} problems |" in page
    kept = results["sampled"]["kept"] - results["sft"]["reply_loss"]["before"]["n"]
    assert f"on {kept} own answers" in page
    cut = results["all_stages"]["truncated_rate"]
    before, after = cut["before"]["value"], cut["after"]["value"]
    assert f"{before:.0%} of the untrained replies, {after:.0%}" in " ".join(page.split())


def test_the_seconds_of_a_step() -> None:
    results = read(REAL / "seconds.json")
    steps = {k: v["seconds_a_step"] for k, v in results.items() if k.startswith("seconds-")}
    assert len(steps) == 4
    for run, seconds in steps.items():
        config = text_of(ROOT / "configs" / f"{run.removeprefix('seconds-')}.yaml")
        assert f"a step took {seconds:.0f} s" in config
    low, high = min(steps.values()), max(steps.values())
    assert f"({low:.0f} to {high:.0f} s a training step" in text_of(README)


def test_other_figures_are_those_of_the_committed_results() -> None:
    rates = {name: side["pairs_per_second"] for name, side in result("dpo_cpu")["sides"].items()}
    faster = [rates[side] / rates["trl"] for side in ("first", "cached")]
    (rounded,) = (a for a in result("rounding")["adapters"] if a["b_std"] == 3e-4)
    lost = [rounded[kind]["lost"] for kind in ("bfloat16", "float16")]
    strict = result("export")["strict"]
    solved = [round(strict[kind]["value"] * strict[kind]["n"]) for kind in strict]
    overhead = result("step_overhead_cpu")
    ours, tracked = (
        max(overhead[task][over]["timed_inside_the_step"]["share"] for task in ("dpo", "grpo"))
        for over in ("project_over_bare", "tracked_over_project")
    )
    memory = max(side["median"]["peak_mb"] for side in result("dpo_cpu")["sides"].values())
    assert tracked < 0.01
    text = " ".join(ALL.split())
    real = result("real_cpu")["summary"]["project_against"].values()
    rates, shares = (
        [each[key] for each in real] for key in ("times_the_rate", "share_of_the_peak")
    )
    assert {*solved} == {296, 297} and "296 or 297 of 300" in text
    for output in (
        "{:.1f} times the pairs a second of `trl dpo`".format(*faster),
        "scoring the reference included, and {1:.1f} times".format(*faster),
        "{:.1f} times as fast as with stock trl by GRPO and {:.2f} times by DPO".format(*rates),
        "in {:.0%} and {:.0%} of the memory".format(*shares),
        "takes back {:.0%} of what the adapter changes in the logits, float16 {:.0%}".format(*lost),
        "the adapter solves {}, merged weights {}, f16 {}, q8_0 {} and q4_k_m {}".format(*solved),
        f"`dpo_demo` takes {memory * 2**20 / 1e9:.1f} GB of memory",
        f"rewards take {ours:.1%} of a demo training step or less",
    ):
        assert output in text, output


def test_checks_of_exports_told_good_files_from_faulty_ones() -> None:
    models = read(REAL / "export_proof.json")["models"]
    assert len(models) == 2
    for name, kinds in models.items():
        assert kinds.keys() == {*KINDS}
        for kind, files in kinds.items():
            assert files.keys() == {"good", *faults_of(kind, biases="Qwen" in name)}
            assert [file for file, row in files.items() if not row["failed"]] == ["good"]
