"""Write an Ollama Modelfile: template, stop texts and system prompt, which Ollama does not take
from a GGUF file.

Ollama renders prompts with Go's text/template, not with the tokenizer's Jinja template, and samples
with its own settings. The Go template here is derived from the tokenizer's template and compared
with it. References: "Modelfile Reference" and "Template" in Ollama's documentation.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from eval import Conversation, Message, PromptFormat, PromptLike, conversation, example_turns
from posttrain.base.errors import ConfigError
from posttrain.base.files import write_text
from posttrain.data.render import clock_note, render

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

    begin: str
    """The text before the first turn."""
    around: dict[str, tuple[str, str]]
    """The text before and after the content, for `user`, `assistant` and, where the chat template
    has such a turn, `system`."""
    start: str
    """The text before a reply."""

    def render(self, conversation: Conversation) -> str:
        """The prompt, as Ollama will render it."""
        return self.begin + "".join(map(self.turn, conversation)) + self.start

    def turn(self, turn: Message) -> str:
        """One turn as text; empty where the template has none of its role."""
        if turn["role"] not in self.around:
            return ""
        before, after = self.around[turn["role"]]
        return before + turn["content"] + after

    def as_go(self) -> str:
        """This template as a Go template that reads `.Messages`."""
        turn = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}'
            for role, (before, after) in self.around.items()
        )
        loop = "{{ range .Messages }}{{ " + turn + "{{ end }}{{ end }}"
        return _quoted(self.begin) + loop + _quoted(self.start)


def _quoted(text: str) -> str:
    """Text for a Go template, with `{{` escaped, which would start an action."""
    return text.replace("{{", '{{ "{{" }}')


def turn_template(tokenizer: Any) -> TurnTemplate:
    """The tokenizer's chat template as fixed text around each turn.

    Raises:
        ConfigError: the chat template does more than that.
    """
    # A private-use character marks the contents: no template holds it.
    system, question, reply, further = (
        {"role": role, "content": f"\ue000{place}\ue000"}
        for place, role in enumerate(("system", "user", "assistant", "user"))
    )
    begin = tokenizer.bos_token or ""
    if not _rendered(tokenizer, [question], reply=False).startswith(begin):
        begin = ""
    around: dict[str, tuple[str, str]] = {}
    turns: list[Message] = []
    rendered = begin
    for turn in (system, question):
        try:
            around[turn["role"]] = _around(tokenizer, rendered, [*turns, turn], turn)
        except ConfigError:
            if turn is question:
                raise
            continue  # the template has no system turn, or puts it into the question
        turns.append(turn)
        rendered = _rendered(tokenizer, turns, reply=False)
    # A reply as it is inside of a prompt: the last of a conversation may be rendered otherwise.
    turns += [reply, further]
    before, after = _around(tokenizer, rendered, turns, reply)
    user = around["user"]
    around["assistant"] = before, after.removesuffix(user[0] + further["content"] + user[1])
    prompt = _rendered(tokenizer, turns, reply=True)
    start = prompt.removeprefix(_rendered(tokenizer, turns, reply=False))
    found = TurnTemplate(begin, around, start)
    if found.render(turns) != prompt:
        raise _cannot_say("a conversation")
    return found


def _around(tokenizer: Any, earlier: str, turns: Conversation, turn: Message) -> tuple[str, str]:
    """The text before and after a turn's content; `earlier` is that of the turns before it."""
    whole = _rendered(tokenizer, turns, reply=False)
    before, content, after = whole.removeprefix(earlier).partition(turn["content"])
    if not (content and whole.startswith(earlier)):
        raise _cannot_say(f"a {turn['role']} turn")
    return before, after


def _cannot_say(what: str) -> ConfigError:
    return ConfigError(
        f"the tokenizer's chat template renders {what} in a way that a Modelfile cannot say; "
        "export the GGUF alone, which carries the template itself"
    )


def default_system(tokenizer: Any) -> str | None:
    """The system prompt that the chat template adds to a conversation without one, if any."""
    question: Message = {"role": "user", "content": "?"}
    template = turn_template(tokenizer)
    alone = _rendered(tokenizer, [question], reply=False).removeprefix(template.begin)
    added = alone.removesuffix(template.turn(question))
    if not added or "system" not in template.around:
        return None
    before, after = template.around["system"]
    return added.removeprefix(before).removesuffix(after)


def _rendered(tokenizer: Any, turns: Conversation, reply: bool) -> str:
    """The text of a conversation, without the start token where Ollama adds it by itself."""
    text, start = render(tokenizer, turns, reply), tokenizer.bos_token
    adds = start is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if adds else text


def modelfile(
    gguf: str,
    template: str,
    prompt: PromptLike,
    stops: Sequence[str],
    parameters: Mapping[str, float],
) -> str:
    """The text of a Modelfile.

    Raises:
        ConfigError: the template or a turn of the prompt holds three quotes, which end a
            text there.
    """
    examples = example_turns(prompt.examples)
    texts = {"chat template": template, "system prompt": prompt.system or ""}
    texts |= {f"worked examples, turn {n}": t["content"] for n, t in enumerate(examples, 1)}
    for what, text in texts.items():
        if '"""' in text:
            raise ConfigError(f'{what}: it holds """, which cannot be written in a Modelfile')
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    if prompt.system:
        lines.append(f'SYSTEM """{prompt.system}"""')
    lines += [f'MESSAGE {turn["role"]} """{turn["content"]}"""' for turn in examples]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def export_ollama(
    gguf: Path,
    tokenizer: Any,
    prompt: PromptLike,
    ends: Sequence[str],
    parameters: Mapping[str, float],
) -> tuple[Path, list[dict[str, Any]]]:
    """Write `Modelfile` beside a GGUF file; returns it, and `{name, value, limit, passed, of}` for
    each check.

    Without a system prompt, that of the chat template is written. `ends` are the texts of tokens
    that end a reply, besides the tokenizer's own; `parameters` are Ollama's of sampling.

    Raises:
        ConfigError: the chat template or the system prompt cannot be written in a Modelfile.
    """
    turns = turn_template(tokenizer)
    if note := clock_note(tokenizer):
        print(note)
    prompt = PromptFormat(prompt.system or default_system(tokenizer), prompt.examples)
    if prompt.system and "system" not in turns.around:
        raise _cannot_say("a system turn")
    stops = [t for t in dict.fromkeys((tokenizer.eos_token, *ends, tokenizer.pad_token)) if t]
    path = gguf.parent / "Modelfile"
    write_text(path, modelfile(gguf.name, turns.as_go(), prompt, stops, parameters))
    single = [conversation(text, prompt) for text in PROMPTS]
    reply: Message = {"role": "assistant", "content": "Bien sûr.\n<answer>42</answer>"}
    probes = [*single, *([*asked, reply, single[0][-1]] for asked in single)]
    same = [turns.render(p) == _rendered(tokenizer, p, reply=True) for p in probes]
    checks = [_check("prompts rendered as the tokenizer renders them", same)]
    if shutil.which("ollama"):
        own = len(single[0]) - 1  # turns that Ollama adds from the Modelfile
        checks += _check_with_ollama(path, tokenizer, single, own)
    return path, checks


def _check(name: str, same: Sequence[bool]) -> dict[str, Any]:
    value, of = sum(same), len(same)
    return {"name": name, "value": value, "limit": of, "passed": value == of, "of": of}


def _check_with_ollama(
    path: Path, tokenizer: Any, probes: Sequence[Conversation], own: int
) -> list[dict[str, Any]]:
    """Check that Ollama gives the same reply to messages as to the tokenizer's prompt text.

    If Ollama is installed but does not answer, prints why and returns no check.
    """
    try:
        _ollama("create", CHECK_NAME, "-f", str(path))
        same = [_replies_alike(tokenizer, turns, own) for turns in probes]
    except (httpx.HTTPError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()[-200:]
        print(f"note: not checked with Ollama: {reason}")
        return []
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            _ollama("rm", CHECK_NAME)
    return [_check("replies of Ollama to messages and to the rendered prompt", same)]


def _replies_alike(tokenizer: Any, turns: Conversation, own: int) -> bool:
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    url = host if host.startswith("http") else f"http://{host}"
    options = {"temperature": 0, "num_predict": CHECK_TOKENS}
    body = {"model": CHECK_NAME, "stream": False, "options": options}
    prompt = _rendered(tokenizer, turns, reply=True)
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        chat = client.post("/api/chat", json={**body, "messages": turns[own:]}).raise_for_status()
        raw = client.post("/api/generate", json={**body, "prompt": prompt, "raw": True})
    reply: str = raw.raise_for_status().json()["response"]
    return bool(chat.json()["message"]["content"] == reply)


def _ollama(*arguments: str) -> None:
    """Run a command of Ollama.

    Raises:
        SubprocessError: it failed, or took too long.
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    subprocess.run(["ollama", *arguments], check=True, timeout=OLLAMA_SECONDS, **options)
