"""An Ollama Modelfile with what a GGUF alone does not carry over: template, stops, system prompt.

Ollama renders prompts with Go's text/template, not with the tokenizer's Jinja template, and samples
with settings of its own. The Go template here is derived from the tokenizer's and checked against
it. References: "Modelfile Reference" and "Template" in Ollama's documentation.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from eval import Conversation, Message
from posttrain.base.errors import ConfigError
from posttrain.base.files import write_text

CHECK_NAME = "posttrain-check"  # the model made in Ollama for the check, and removed
CHECK_TOKENS = 48
OLLAMA_SECONDS = 900
PROMPTS = (
    "What is 17 + 25?",
    "Combien font 12 fois 8 ? Réponds en une phrase.",
    "Braces {{ .Content }} and quotes \" ' stay as they are.\nSo do line breaks.",
)


@dataclass(frozen=True)
class TurnTemplate:
    """A chat template that puts fixed text around each turn, by its role."""

    around: dict[str, tuple[str, str]]
    """The text before and after the content, for `system`, `user` and `assistant`."""
    start: str
    """What a reply starts with."""

    def render(self, conversation: Conversation) -> str:
        """The prompt, as Ollama will render it."""
        turns = [
            self.around[t["role"]][0] + t["content"] + self.around[t["role"]][1]
            for t in conversation
        ]
        return "".join(turns) + self.start

    def as_go(self) -> str:
        """The same as a Go template over `.Messages`."""
        turn = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}'
            for role, (before, after) in self.around.items()
        )
        loop = "{{ range .Messages }}{{ " + turn + "{{ end }}{{ end }}"
        return loop + _quoted(self.start)


def _quoted(text: str) -> str:
    """Text as it may stand in a Go template: braces would begin an action there."""
    return text.replace("{{", '{{ "{{" }}')


def turn_template(tokenizer: Any) -> TurnTemplate:
    """The tokenizer's chat template, turn by turn.

    Raises:
        ConfigError: it does more than put fixed text around each turn.
    """
    turns: list[Message] = []
    around, rendered = {}, ""
    for role in ("system", "user", "assistant"):
        content = f"\ue000{role}\ue000"  # a private-use character, so nothing else in the text
        turns = [*turns, {"role": role, "content": content}]
        longer = _rendered(tokenizer, turns, reply=False)
        before, found, after = longer.removeprefix(rendered).partition(content)
        if not (found and longer.startswith(rendered)):
            raise ConfigError(
                f"the tokenizer's chat template renders a {role} turn in a way that a Modelfile "
                "cannot say; export the GGUF alone, which carries the template itself"
            )
        around[role], rendered = (before, after), longer
    asked = _rendered(tokenizer, turns[:2], reply=False)
    return TurnTemplate(around, _rendered(tokenizer, turns[:2], reply=True).removeprefix(asked))


def default_system(tokenizer: Any) -> str | None:
    """The system prompt that the chat template adds to a conversation without one, if any."""
    question: Message = {"role": "user", "content": "?"}
    before, after = turn_template(tokenizer).around["system"]
    alone = _rendered(tokenizer, [question], reply=False)
    added = alone.removesuffix(_rendered_turn(tokenizer, question))
    if not added:
        return None
    return added.removeprefix(before).removesuffix(after)


def _rendered_turn(tokenizer: Any, turn: Message) -> str:
    before, after = turn_template(tokenizer).around[turn["role"]]
    return before + turn["content"] + after


def _rendered(tokenizer: Any, turns: Conversation, reply: bool) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
    return text


def modelfile(
    gguf: str,
    template: str,
    system: str | None,
    stops: Sequence[str],
    parameters: Mapping[str, float],
) -> str:
    """The text of a Modelfile.

    Raises:
        ConfigError: template or system prompt hold three quotes, which end a text there.
    """
    for what, text in (("chat template", template), ("system prompt", system or "")):
        if '"""' in text:
            raise ConfigError(f'the {what} holds """, which cannot be written in a Modelfile')
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def export_ollama(
    gguf: Path, tokenizer: Any, system: str | None, parameters: Mapping[str, float]
) -> tuple[Path, list[dict[str, Any]]]:
    """Write `Modelfile` beside a GGUF file.

    Args:
        gguf: The model file, of the same folder.
        tokenizer: The tokenizer that the model was trained with.
        system: System prompt of the training; None for the one that the chat template adds.
        parameters: Ollama's sampling parameters, such as `{"temperature": 0}`.

    Returns:
        The Modelfile, and what was checked, one `{name, value, limit, passed, of}` a check.

    Raises:
        ConfigError: the chat template or the system prompt cannot be written in a Modelfile.
    """
    turns = turn_template(tokenizer)
    system = system or default_system(tokenizer)
    stops = [text for text in dict.fromkeys((tokenizer.eos_token, tokenizer.pad_token)) if text]
    path = gguf.parent / "Modelfile"
    write_text(path, modelfile(gguf.name, turns.as_go(), system, stops, parameters))
    probes = _probes(system)
    same = sum(turns.render(p) == _rendered(tokenizer, p, reply=True) for p in probes)
    checks = [_check("prompts rendered as the tokenizer renders them", same, len(probes))]
    if shutil.which("ollama"):
        checks += _ask_ollama(path, tokenizer, probes[: len(PROMPTS)])
    return path, checks


def _probes(system: str | None) -> list[Conversation]:
    """Conversations of one and of two questions, as Ollama hands them over: system turn first."""
    first: Conversation = [{"role": "system", "content": system}] if system else []
    asked = [[*first, {"role": "user", "content": text}] for text in PROMPTS]
    reply: Message = {"role": "assistant", "content": "Bien sûr.\n<answer>42</answer>"}
    return [*asked, *([*turns, reply, asked[0][-1]] for turns in asked)]


def _check(name: str, value: int, limit: int) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": value == limit, "of": limit}


def _ask_ollama(path: Path, tokenizer: Any, probes: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Whether Ollama, given messages, replies as it does to the tokenizer's own prompt text.

    No check, and a line that says why, where Ollama is installed but does not answer.
    """
    made = _ollama("create", CHECK_NAME, "-f", str(path))
    if made.returncode:
        print(f"note: not checked with Ollama: {made.stderr.strip()[-200:]}")
        return []
    try:
        same = [_replies_alike(tokenizer, turns) for turns in probes]
    except httpx.HTTPError as error:
        print(f"note: not checked with Ollama: {error}")
        return []
    finally:
        _ollama("rm", CHECK_NAME)
    return [
        _check("replies of Ollama to messages and to the rendered prompt", sum(same), len(same))
    ]


def _replies_alike(tokenizer: Any, turns: Conversation) -> bool:
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    options = {"temperature": 0, "num_predict": CHECK_TOKENS}
    asked = {"model": CHECK_NAME, "stream": False, "options": options}
    prompt = _rendered(tokenizer, turns, reply=True)
    url = host if host.startswith("http") else f"http://{host}"
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        chat = client.post("/api/chat", json={**asked, "messages": turns}).raise_for_status()
        raw = client.post("/api/generate", json={**asked, "prompt": prompt, "raw": True})
        said: str = raw.raise_for_status().json()["response"]
    return bool(chat.json()["message"]["content"] == said)


def _ollama(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command of Ollama's gave; one that hangs is ended, and counts as failed."""
    command = ["ollama", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=OLLAMA_SECONDS,
        )
    except subprocess.TimeoutExpired:
        why = f"`{' '.join(command[:2])}` took over {OLLAMA_SECONDS} seconds"
        return subprocess.CompletedProcess(command, 1, "", why)
