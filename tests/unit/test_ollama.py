"""The Modelfile: its Go template against the tokenizer's template, rendered by Go if installed."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval import PromptFormat
from posttrain.base.errors import ConfigError
from posttrain.data.render import set_template_variables
from posttrain.export.ollama import default_system, export_ollama, modelfile, turn_template
from tests.families import FAMILIES, make_tokenizer
from tests.helpers import ROOT, SHARED, needs_shared
from tests.unit.test_prompt_text import with_template

TOKENIZERS = [
    ROOT / "assets" / "demo_model",
    pytest.param(SHARED / "qwen2.5-tokenizer", marks=needs_shared),
]
SYSTEM = "Tu es concis. Pas de {{ .System }} ici."
CONVERSATIONS = [
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Combien font 2 + 2 ?"}],
    [
        {"role": "system", "content": "{{ range .Messages }}"},
        {"role": "user", "content": "a\n\n b "},
        {"role": "assistant", "content": "4 }} {{ end }}"},
        {"role": "user", "content": "<|im_end|> and <|im_start|>"},
    ],
]
RENDER = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var input struct {
		Template      string
		Conversations [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(input.Template))
	for _, messages := range input.Conversations {
		if err := parsed.Execute(os.Stdout, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("\\x00")
	}
}
"""


def rendered(tokenizer: Any, turns: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("folder", TOKENIZERS)
def test_turns_are_rendered_as_by_the_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = turn_template(tokenizer)
    for turns in CONVERSATIONS:
        assert template.render(turns) == rendered(tokenizer, turns)


def exported(folder: Path, tokenizer: Any, system: str | None = None, **more: Any) -> Any:
    """The Modelfile beside a GGUF file, and the check of it."""
    stops, parameters = more.pop("stops", []), more
    return export_ollama(folder / "m.gguf", tokenizer, PromptFormat(system), stops, parameters)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    """Replies of earlier turns, a start token that Ollama adds, no system turn."""
    tokenizer, bos = make_tokenizer(FAMILIES[name]), FAMILIES[name].bos
    variables = {"enable_thinking": False} if name == "qwen3" else {}
    set_template_variables(tokenizer, variables)
    system = None if name == "gemma" else SYSTEM
    path, check = exported(tmp_path, tokenizer, system)
    assert check.passed and check.value == 6
    assert bos is None or bos not in path.read_text(encoding="utf-8")
    conversation = CONVERSATIONS[1][1 if name == "gemma" else 0 :]
    conversation = [{**turn, "content": turn["content"].strip()} for turn in conversation]
    prompt = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True, **variables
    )
    assert (bos or "") + turn_template(tokenizer).render(conversation) == prompt


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("folder", TOKENIZERS)
def test_go_renders_it_as_the_tokenizer_does(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (tmp_path / "render.go").write_text(RENDER, encoding="utf-8")
    given = {"Template": turn_template(tokenizer).as_go(), "Conversations": CONVERSATIONS}
    result = subprocess.run(
        ["go", "run", str(tmp_path / "render.go")],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split("\0")[:-1] == [rendered(tokenizer, t) for t in CONVERSATIONS]


@needs_shared
def test_the_system_prompt_of_qwens_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen2.5-tokenizer")
    system = default_system(tokenizer)
    assert system is not None and system.startswith("You are Qwen")
    question = {"role": "user", "content": "?"}
    with_system = [{"role": "system", "content": system}, question]
    assert rendered(tokenizer, with_system) == rendered(tokenizer, [question])
    path, _ = exported(tmp_path, tokenizer)
    assert f'SYSTEM """{system}"""' in path.read_text(encoding="utf-8")  # Ollama would add none
    assert default_system(AutoTokenizer.from_pretrained(ROOT / "assets" / "demo_model")) is None


def test_what_a_modelfile_cannot_express_is_refused(tmp_path: Path) -> None:
    numbered = "{% for t in messages %}{{ messages|length }}{{ t.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="a Modelfile cannot express"):
        turn_template(with_template(numbered))
    with pytest.raises(ConfigError, match="a user turn"):
        turn_template(with_template("{% for t in messages[1:] %}{{ t.content }}{% endfor %}"))
    with pytest.raises(ConfigError, match="a system turn"):
        exported(tmp_path, make_tokenizer(FAMILIES["gemma"]), SYSTEM)
    with pytest.raises(ConfigError, match="SYSTEM holds"):
        modelfile("a.gguf", "t", PromptFormat('say """ aloud'), [], {})
    braces = "{% for t in messages %}{{ '{{' + t.content + '}}' }}{% endfor %}"
    assert turn_template(with_template(braces)).as_go().count('{{ "{{" }}') == 3
    # Short contents pass through this one unchanged, the long ones of the check do not.
    changed = "{% for t in messages %}<{{ t.role }}>{{ t.content|replace('quotes', '') }}"
    assert not exported(tmp_path, with_template(changed + "{% endfor %}"))[1].passed


def test_the_modelfile(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "demo_model")
    more = {"temperature": 0, "num_ctx": 256}
    path, check = exported(tmp_path, tokenizer, SYSTEM, stops=["<|end|>"], **more)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[0] == "FROM ./m.gguf"
    assert f'SYSTEM """{SYSTEM}"""' in lines
    stops = [line.removeprefix("PARAMETER stop ") for line in lines if " stop " in line]
    assert stops == ['"<|im_end|>"', '"<|end|>"', '"<|endoftext|>"']
    assert {"PARAMETER temperature 0", "PARAMETER num_ctx 256"} <= {*lines}
    assert check.passed and check.value == check.limit == 6
