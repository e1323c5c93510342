"""Write an Ollama Modelfile: template, stop texts and system prompt, which Ollama does not take
from a GGUF file.

Ollama renders prompts with Go's text/template, not with the tokenizer's Jinja template, and samples
with its own settings. The Go template here is derived from the tokenizer's template and compared
with it. References: "Modelfile Reference" and "Template" in Ollama's documentation.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import Conversation, Message, PromptFormat, PromptLike, conversation, example_turns
from posttrain.base.errors import ConfigError
from posttrain.base.files import write_text
from posttrain.data.render import clock_note, render
from posttrain.run.results import Check

PROMPTS = (
    "What is 17 + 25?",
    "Combien font 12 fois 8 ? Réponds en une phrase.",
    "Braces {{ .Content }} and quotes \" ' stay as they are.\nSo do line breaks.",
)
REPLY: Message = {"role": "assistant", "content": "Bien sûr.\n<answer>42</answer>"}


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
        """One turn as text; empty if the template has none of its role."""
        if turn["role"] not in self.around:
            return ""
        before, after = self.around[turn["role"]]
        return before + turn["content"] + after

    def as_go(self) -> str:
        """This template as a Go template that reads `.Messages`."""
        turn = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{_escaped(before)}{{{{ .Content }}}}{_escaped(after)}'
            for role, (before, after) in self.around.items()
        )
        loop = "{{ range .Messages }}{{ " + turn + "{{ end }}{{ end }}"
        return _escaped(self.begin) + loop + _escaped(self.start)


def _escaped(text: str) -> str:
    """Text for a Go template, with `{{` escaped, which would start an action."""
    return text.replace("{{", '{{ "{{" }}')


def turn_template(tokenizer: Any) -> TurnTemplate:
    """The tokenizer's chat template as fixed text around each turn; raises ConfigError if the chat
    template does more than that."""
    # A private-use character marks the contents: no template holds it.
    system, question, reply, further = (
        {"role": role, "content": f"\ue000{index}\ue000"}
        for index, role in enumerate(("system", "user", "assistant", "user"))
    )
    begin = tokenizer.bos_token or ""
    if not _rendered(tokenizer, [question], reply=False).startswith(begin):
        begin = ""
    around: dict[str, tuple[str, str]] = {}
    turns: list[Message] = []
    rendered = begin
    with contextlib.suppress(ConfigError):  # without a system turn, or where it is in the question
        around["system"] = _around(tokenizer, begin, [system], system)
        turns = [system]
        rendered = _rendered(tokenizer, turns, reply=False)
    turns.append(question)
    around["user"] = _around(tokenizer, rendered, turns, question)
    rendered = _rendered(tokenizer, turns, reply=False)
    # A reply within a prompt: the last turn of a conversation may be rendered differently.
    turns += [reply, further]
    before, after = _around(tokenizer, rendered, turns, reply)
    user = around["user"]
    around["assistant"] = before, after.removesuffix(user[0] + further["content"] + user[1])
    prompt = _rendered(tokenizer, turns, reply=True)
    start = prompt.removeprefix(_rendered(tokenizer, turns, reply=False))
    template = TurnTemplate(begin, around, start)
    if template.render(turns) != prompt:
        raise _inexpressible("a conversation")
    return template


def _around(tokenizer: Any, earlier: str, turns: Conversation, turn: Message) -> tuple[str, str]:
    """The text before and after the content of a turn that follows the `earlier` text."""
    rendered = _rendered(tokenizer, turns, reply=False)
    before, content, after = rendered.removeprefix(earlier).partition(turn["content"])
    if not (content and rendered.startswith(earlier)):
        raise _inexpressible(f"a {turn['role']} turn")
    return before, after


def _inexpressible(what: str) -> ConfigError:
    return ConfigError(
        f"the tokenizer's chat template renders {what} in a way that a Modelfile cannot express; "
        "export the GGUF alone, which contains the template"
    )


def default_system(tokenizer: Any) -> str | None:
    """The system prompt that the chat template adds to a conversation without one, if any."""
    question: Message = {"role": "user", "content": "?"}
    template = turn_template(tokenizer)
    rendered = _rendered(tokenizer, [question], reply=False).removeprefix(template.begin)
    added = rendered.removesuffix(template.turn(question))
    if not added or "system" not in template.around:
        return None
    before, after = template.around["system"]
    return added.removeprefix(before).removesuffix(after)


def _rendered(tokenizer: Any, turns: Conversation, reply: bool) -> str:
    """The text of a conversation, without the start token if Ollama adds one."""
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
    """The text of a Modelfile; raises ConfigError if a text of it holds three quotes, which end a
    text there."""
    texts = [("TEMPLATE", template), *([("SYSTEM", prompt.system)] if prompt.system else [])]
    texts += [(f"MESSAGE {t['role']}", t["content"]) for t in example_turns(prompt.examples)]
    for name, text in texts:
        if '"""' in text:
            raise ConfigError(f'{name} holds """, which cannot be written in a Modelfile')
    lines = [f"FROM ./{gguf}", *(f'{name} """{text}"""' for name, text in texts)]
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def export_ollama(
    gguf: Path,
    tokenizer: Any,
    prompt: PromptLike,
    ends: Sequence[str],
    parameters: Mapping[str, float],
) -> tuple[Path, Check]:
    """Write `Modelfile` beside a GGUF file; returns it, and how many prompts its template renders
    as the tokenizer does.

    Without a system prompt, that of the chat template is written. `ends` are the texts of tokens
    that end a reply, besides the tokenizer's EOS; `parameters` are Ollama's of sampling. Raises
    ConfigError if the chat template or the system prompt cannot be written in a Modelfile.
    """
    template = turn_template(tokenizer)
    if note := clock_note(tokenizer):
        print(note)
    prompt = PromptFormat(prompt.system or default_system(tokenizer), prompt.examples)
    if prompt.system and "system" not in template.around:
        raise _inexpressible("a system turn")
    stops = [t for t in dict.fromkeys((tokenizer.eos_token, *ends, tokenizer.pad_token)) if t]
    path = gguf.parent / "Modelfile"
    write_text(path, modelfile(gguf.name, template.as_go(), prompt, stops, parameters))
    single = [conversation(text, prompt) for text in PROMPTS]
    cases = [*single, *([*turns, REPLY, single[0][-1]] for turns in single)]
    same = sum(template.render(c) == _rendered(tokenizer, c, reply=True) for c in cases)
    name, of = "prompts rendered as the tokenizer renders them", len(cases)
    return path, Check(name, same, of, same == of, of)
