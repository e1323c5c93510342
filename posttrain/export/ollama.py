"""Write an Ollama Modelfile: template, stop texts and system prompt, which Ollama does not take
from a GGUF file.

Ollama renders prompts with Go's text/template, not with the tokenizer's Jinja template, and samples
with its own settings. The Go template here is derived from the tokenizer's template and compared
with it. References: "Modelfile Reference" and "Template" in Ollama's documentation.
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

CHECK_NAME = "posttrain-check"  # the model that the check creates in Ollama, and removes
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
    """The text before a reply."""

    def render(self, conversation: Conversation) -> str:
        """The prompt, as Ollama will render it."""
        turns = [
            self.around[t["role"]][0] + t["content"] + self.around[t["role"]][1]
            for t in conversation
        ]
        return "".join(turns) + self.start

    def as_go(self) -> str:
        """This template as a Go template that reads `.Messages`."""
        turn = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}'
            for role, (before, after) in self.around.items()
        )
        loop = "{{ range .Messages }}{{ " + turn + "{{ end }}{{ end }}"
        return loop + _quoted(self.start)


def _quoted(text: str) -> str:
    """Text for a Go template, with `{{` escaped, which would start an action."""
    return text.replace("{{", '{{ "{{" }}')


def turn_template(tokenizer: Any) -> TurnTemplate:
    """The tokenizer's chat template as fixed text around each turn.

    Raises:
        ConfigError: the chat template does more than that.
    """
    turns: list[Message] = []
    around, rendered = {}, ""
    for role in ("system", "user", "assistant"):
        content = f"\ue000{role}\ue000"  # a private-use character, which no template holds
        turns = [*turns, {"role": role, "content": content}]
        longer = _rendered(tokenizer, turns, reply=False)
        before, marker, after = longer.removeprefix(rendered).partition(content)
        if not (marker and longer.startswith(rendered)):
            raise ConfigError(
                f"the tokenizer's chat template renders a {role} turn in a way that a Modelfile "
                "cannot say; export the GGUF alone, which carries the template itself"
            )
        around[role], rendered = (before, after), longer
    prompt = _rendered(tokenizer, turns[:2], reply=False)
    return TurnTemplate(around, _rendered(tokenizer, turns[:2], reply=True).removeprefix(prompt))


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
        gguf: The model file.
        tokenizer: The tokenizer that the model was trained with.
        system: System prompt of the training; None uses that of the chat template.
        parameters: Ollama's sampling parameters, such as `{"temperature": 0}`.

    Returns:
        The Modelfile, and one `{name, value, limit, passed, of}` for each check.

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
    """Conversations of one and of two questions. The system turn comes first, as in Ollama."""
    first: Conversation = [{"role": "system", "content": system}] if system else []
    single = [[*first, {"role": "user", "content": text}] for text in PROMPTS]
    reply: Message = {"role": "assistant", "content": "Bien sûr.\n<answer>42</answer>"}
    return [*single, *([*turns, reply, single[0][-1]] for turns in single)]


def _check(name: str, value: int, limit: int) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": value == limit, "of": limit}


def _ask_ollama(path: Path, tokenizer: Any, probes: Sequence[Conversation]) -> list[dict[str, Any]]:
    """Check that Ollama gives the same reply to messages as to the tokenizer's prompt text.

    If Ollama is installed but does not answer, prints why and returns no check.
    """
    created = _ollama("create", CHECK_NAME, "-f", str(path))
    if created.returncode:
        print(f"note: not checked with Ollama: {created.stderr.strip()[-200:]}")
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
    request = {"model": CHECK_NAME, "stream": False, "options": options}
    prompt = _rendered(tokenizer, turns, reply=True)
    url = host if host.startswith("http") else f"http://{host}"
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        chat = client.post("/api/chat", json={**request, "messages": turns}).raise_for_status()
        raw = client.post("/api/generate", json={**request, "prompt": prompt, "raw": True})
        reply: str = raw.raise_for_status().json()["response"]
    return bool(chat.json()["message"]["content"] == reply)


def _ollama(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Ollama. One that takes too long is ended and counts as failed."""
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
