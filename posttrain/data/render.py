"""Render rows as the text and tokens that the model reads, and drop those over its limit.

The one place that renders a prompt. trl's GRPOTrainer alone renders its own, with the same
variables.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

from eval import Message
from posttrain.base.errors import ConfigError, DataError, did_you_mean, first_line, quoted

Variables = Mapping[str, bool | int | float | str]
NONE: Variables = MappingProxyType({})
# tokenizer -> the variables that its chat template gets beside the turns.
_VARIABLES: WeakKeyDictionary[Any, Variables] = WeakKeyDictionary()
PARALLEL = "TOKENIZERS_PARALLELISM"
AT_ONCE = 2_000  # texts whose token ids are in memory
# tokenizer -> the rows of its model's embedding, and what the model is, where ids can exceed them.
_ROWS: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
_MARKER = "\ue000"  # a private-use character, which no template holds
CLOCK = datetime(2026, 1, 1)
"""The time of every rendered prompt. Some chat templates write today's date (Llama 3, SmolLM3):
with a real clock the prompts of a run would change at midnight, and differ from its scores."""


def set_template_variables(
    tokenizer: Any, variables: Variables, where: str = "prompt.chat_template_kwargs"
) -> None:
    """Let render() give the tokenizer's chat template these variables from now on. Raises a
    ConfigError where it reads no variable of such a name, which would change nothing."""
    known = set(re.findall(r"\w+", tokenizer.get_chat_template())) if variables else set()
    for name in variables:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{where}: the model's chat template reads no '{name}'.{hint}")
    _VARIABLES[tokenizer] = variables


def template_variables(tokenizer: Any) -> dict[str, Any]:
    """The variables that render() gives the tokenizer's chat template, and a clock that stands
    still in place of the function that transformers gives it."""
    return {"strftime_now": CLOCK.strftime, **_VARIABLES.get(tokenizer, NONE)}


def clock_note(tokenizer: Any) -> str | None:
    """A line about the date in prompts; None where the chat template writes none."""
    user: Message = {"role": "user", "content": "?"}
    dated = False
    for turns in ([user], [{"role": "system", "content": "?"}, user]):
        with contextlib.suppress(ConfigError):  # some templates refuse a system turn
            dated |= render(tokenizer, turns) != render(tokenizer, turns, today=True)
    if not dated:
        return None
    return (
        f"note: the chat template writes today's date into prompts; here it is {CLOCK:%d %B %Y} on "
        "every day, in an Ollama export too, so that a run can be resumed and compared. Servers "
        "that render prompts themselves (llama.cpp, vLLM) write today's. If the template has a "
        "variable for the date, prompt.chat_template_kwargs sets it, for them too"
    )


def render(
    tokenizer: Any, conversation: Sequence[Message], reply: bool = True, today: bool = False
) -> str:
    """The conversation as text; with `reply` as a prompt, up to the start of the reply; `today`:
    with today's date, as a server renders it, instead of that of CLOCK. Raises a ConfigError where
    the chat template refuses the conversation, such as one with a system turn."""
    from jinja2 import TemplateError

    variables = {"add_generation_prompt": reply, **template_variables(tokenizer)}
    if today:
        variables["strftime_now"] = datetime.now().strftime
    turns = list(conversation)
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **variables))
    except TemplateError as error:
        refusal = f"the model's chat template refuses a conversation: {first_line(error)}"
    if turns[0]["role"] == "system" and turns[1:]:
        with contextlib.suppress(TemplateError):
            tokenizer.apply_chat_template(turns[1:], tokenize=False, **variables)
            refusal += (
                ". It takes no system turn: set prompt.system to null, data.columns.system too if "
                "rows have their own, evaluation.also to [] (./run evaluate: --system ''), and "
                "put its text into the questions"
            )
    raise ConfigError(refusal)


def end_of_reply(tokenizer: Any) -> str | None:
    """The special token that the chat template ends a reply with, None if there is none. In some
    models it is not the tokenizer's end-of-sequence token, which then ends a document."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARKER}]
    try:
        after = render(tokenizer, turns, reply=False).rpartition(_MARKER)[2].lstrip()
    except ConfigError:
        return None
    special = filter(after.startswith, _special(tokenizer))
    return max(special, key=len, default=None)


def _special(tokenizer: Any) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def already_rendered(
    tokenizer: Any, rows: Iterable[tuple[str, Iterable[str]]]
) -> dict[str, Any] | None:
    """`{"count", "first", "token", "text"}` of rows (where, texts) that contain special tokens, as
    a rendered conversation does; None if there are none."""
    pattern = re.compile("|".join(map(re.escape, _special(tokenizer))) or r"(?!)")
    held = []
    for where, texts in rows:
        if match := next(filter(None, map(pattern.search, texts)), None):
            held.append((where, match.group()))
    if not held:
        return None
    where, token = held[0]
    text = (
        f"rows with special tokens of the model: {len(held)}, such as {token} in {where}. "
        "They seem to be rendered already, and the chat template renders them again. Give each "
        "turn without the template's tokens"
    )
    return {"count": len(held), "first": where, "token": token, "text": text}


def repeated_opening(
    tokenizer: Any, conversation: Sequence[Message], prompt: str, reply: str
) -> str | None:
    """What a reply begins with though its rendered `prompt` has it already, such as `<think>`: a
    line of what the chat template writes between the last turn and the reply."""
    reply = reply.lstrip()
    # Rendering takes time, and hardly any reply begins with one of the last lines of its prompt.
    if not any(map(reply.startswith, _lines(prompt)[-8:])):
        return None
    turns = [*conversation[:-1], {**conversation[-1], "content": _MARKER}]
    between = _lines(render(tokenizer, turns).rpartition(_MARKER)[2])
    return max((line for line in between if reply.startswith(line)), key=len, default=None)


def refuse_repeated(
    tokenizer: Any, rows: Iterable[tuple[str, Sequence[Message], str, str]]
) -> None:
    """Check rows of (file and number, conversation, rendered prompt, reply). Raises a DataError
    where replies repeat what their rendered prompt ends with."""
    openings = [(row[0], repeated_opening(tokenizer, *row[1:])) for row in rows]
    if repeated := [(where, opening) for where, opening in openings if opening]:
        where, opening = repeated[0]
        raise DataError(
            f"{where}: a reply begins with {opening!r}, which the chat template has already "
            f"written at the end of the prompt, as do {len(repeated)} replies in all: it would be "
            "trained twice. Remove it from the start of these replies, or, if the template has a "
            "variable that leaves it out, set prompt.chat_template_kwargs"
        )


def _lines(text: str) -> list[str]:
    """The lines of a text that are not empty, without white space at their ends."""
    return [line.strip() for line in text.splitlines() if line.strip()]


@contextlib.contextmanager
def without_added_tokens(tokenizer: Any) -> Iterator[None]:
    """Let `tokenizer(text)` add no token around a text inside of the block: a rendered prompt holds
    its start token already, and a second one would be trained on."""
    backend = tokenizer.backend_tokenizer
    adds, backend.post_processor = backend.post_processor, None
    try:
        yield
    finally:
        backend.post_processor = adds


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text, on all processors. A special token counts as one."""
    before = os.environ.get(PARALLEL, "false")
    os.environ[PARALLEL] = "true"
    try:
        return [
            len(ids)
            for start in range(0, len(texts), AT_ONCE)
            for ids in token_ids(tokenizer, texts[start : start + AT_ONCE])
        ]
    finally:  # with threads on, tokenizers warns at each later fork
        os.environ[PARALLEL] = before


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without those that the tokenizer would add around it. Raises a
    ConfigError where one is beyond the embedding of the tokenizer's model (limit_token_ids)."""
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False}
    ids: list[list[int]] = tokenizer(list(texts), **options)["input_ids"]
    if tokenizer in _ROWS:
        rows, model = _ROWS[tokenizer]
        for text, row in zip(texts, ids, strict=True):
            if (largest := max(row, default=0)) >= rows:
                start = max(0, text.find(tokenizer.convert_ids_to_tokens(largest)) - 30)
                raise _beyond(tokenizer, largest, rows, model, f" in {quoted(text[start:])}")
    return ids


def limit_token_ids(tokenizer: Any, rows: int, model: str) -> None:
    """Let token_ids() refuse, from now on, ids that a model with so many embeddings cannot read: it
    would end in an IndexError in mid-run, or in a failed assertion of the GPU. Raises a ConfigError
    where the padding or end token has one. `model` names the model in messages."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and token >= rows:
            raise _beyond(tokenizer, token, rows, model, " (for padding or the end of a reply)")
    if max(tokenizer.get_vocab().values()) >= rows:
        _ROWS[tokenizer] = (rows, model)


def _beyond(tokenizer: Any, token: int, rows: int, model: str, where: str) -> ConfigError:
    return ConfigError(
        f"{model}: the token {tokenizer.convert_ids_to_tokens(token)!r}{where} has id {token}, and "
        f"the model has embeddings for ids below {rows} only; use the tokenizer that the weights "
        "were made with, or add rows to the model (resize_token_embeddings) and save it"
    )


def drop_overlong(
    rows: Sequence[Any], lengths: Sequence[int], limit: int, rule: str, what: str
) -> list[Any]:
    """The rows that have at most `limit` tokens. The number of dropped rows is printed. Raises a
    DataError where a row is too long and `rule` is "error", or no row is left."""
    long = [number for number, length in enumerate(lengths, start=1) if length > limit]
    if not long:
        return list(rows)
    if rule == "error":
        first = rows[long[0] - 1].where or f"row {long[0]}"
        raise DataError(
            f"{what}: {first} takes {lengths[long[0] - 1]} tokens and {len(long)} of "
            f"{len(rows)} rows are over the limit of {limit}. Raise model.max_seq_length, or set "
            "data.overlong=drop to leave them out"
        )
    if len(long) == len(rows):
        raise DataError(f"{what}: all {len(rows)} rows are over the limit of {limit} tokens")
    print(f"{what}: dropped {len(long)} of {len(rows)} rows over {limit} tokens (data.overlong)")
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
