"""docs/benchmarks.md: what its commands for other programs say of this project is true.

The programs are not in the environment; what was tried of their own options is on the page.
"""

import re
import shlex
from typing import Any

import pytest
import yaml

from posttrain.settings import DPOSettings
from posttrain.settings.command import load_settings
from posttrain.settings.strict_yaml import parse_yaml
from tests.helpers import ROOT
from tests.quickstarts.pages import blocks, text_of

PAGE = text_of(ROOT / "docs" / "benchmarks.md")
TASKS = ROOT / "docs" / "benchmarks"
VARIABLES = dict(re.findall(r'^(model|system)="?([^"\n]+)"?$', PAGE, re.MULTILINE))
LINES = [
    line.replace("$model", VARIABLES["model"]).replace("$system", VARIABLES["system"])
    for block in blocks(PAGE, "sh")
    for line in block.splitlines()
    if line.startswith(("lm-eval/bin/lm_eval ", "lighteval/bin/lighteval ", "llama-server "))
]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def task_of_lm_eval() -> dict[str, Any]:
    """ifeval_fr.yaml, with its functions by name."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    result: dict[str, Any] = yaml.load(
        (TASKS / "lm_eval" / "ifeval_fr.yaml").read_text("utf-8"), Loader
    )
    return result


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.split()[:3]))
def test_the_model_is_an_export_of_a_config_and_gets_its_system_prompt(line: str) -> None:
    settings = load_settings(DPOSettings, ROOT / "configs" / "dpo_french_16gb.yaml")
    run = f"outputs/{settings.run.name}"
    words = shlex.split(line)
    if words[0] == "llama-server":
        assert option(words, "-m") == f"{run}/gguf/{settings.run.name}-q8_0.gguf"
        return
    if words[0].endswith("lm_eval"):
        assert "--apply_chat_template" in words
        assert option(words, "--system_instruction") == settings.prompt.system
        where = option(words, "--model_args")
    else:
        (file,) = (word for word in words if word.endswith(".yaml"))
        model = parse_yaml(text_of(ROOT / file), file)["model_parameters"]
        assert model["system_prompt"] == settings.prompt.system
        where = str(model)
    assert f"{run}/merged_16bit" in where or "http://127.0.0.1:8080/v1" in where


def test_the_tasks_of_ours_are_those_that_are_asked_for() -> None:
    assert len(LINES) == 7
    assert [path.name for path in (TASKS / "lm_eval").iterdir()] == ["ifeval_fr.yaml"]
    assert task_of_lm_eval()["task"] == "ifeval_fr"
    assert sum("--include_path docs/benchmarks/lm_eval " in line for line in LINES) == 2
    for line in LINES:
        words = shlex.split(line)
        assert ("--include_path" in words) == ("ifeval_fr" in line and "lm_eval run" in line)
        if "mt-bench-french" in line:
            assert (ROOT / option(words, "--custom-tasks")).is_file()
    assert 'name="mt-bench-french"' in text_of(TASKS / "lighteval" / "mt_bench_french.py")


def test_what_can_be_read_of_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of mt_bench_french.py that need nothing of LightEval."""
    source = text_of(TASKS / "lighteval" / "mt_bench_french.py")
    start, end = source.index("ASK ="), source.index("class FirstTurn")
    names: dict[str, Any] = {}
    exec(f"import math, re\n{source[start:end]}", names)
    rating, ask = names["rating"], names["ask"]
    assert rating("Bien. [[7]]") == 7 and rating("[[2]] ou plutôt [[8,5]]") == 8.5
    assert rating("[7]") != rating("[7]") and rating(None) != rating(None)  # not a number
    (turn,) = ask("Pourquoi ?", "Parce que.", gold="Car.")
    assert turn["role"] == "user" and "Pourquoi ?" in turn["content"] and "Car." in turn["content"]
    assert "référence" not in ask("Pourquoi ?", "Parce que.")[0]["content"]
