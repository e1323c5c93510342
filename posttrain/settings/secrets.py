"""Secrets come from the environment only: settings and arguments that hold one are refused.

A run folder keeps the resolved settings and the command line, so a token given there would be on
disk for good. Messages name where it is, never the value.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.base.errors import ConfigError

# Names of settings that hold a secret. `pad_token` and its like are words of a vocabulary.
_NAME = re.compile(
    r"(^|_)(api_?keys?|access_?keys?|private_?keys?|passwords?|passwd|passphrase|secrets?"
    r"|credentials?|bearer|authorization)(_|$)|(^|_)token$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(
    r"^(bos|eos|pad|unk|sep|cls|mask|image|video|audio|stop|start|special|extra_special"
    r"|additional_special)_token$",
    re.IGNORECASE,
)
_VALUES = {
    "a Hugging Face token": re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}"),
    "an API key": re.compile(r"\b(sk|rk|pk)-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}"),
    "a W&B key": re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}|\A\s*[0-9a-f]{40}\s*\Z"),
    "a GitHub token": re.compile(r"\b(gh[opusr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE),
}
_COMMIT = re.compile(r"(^|[._-])revision$")  # 40 hexadecimal digits there are a commit
_WHAT_TO_DO = (
    "remove it and set an environment variable instead (HF_TOKEN, WANDB_API_KEY, ...); if this "
    "file or command was ever shared, make a new one"
)
_SHORTEST = 8  # characters of a value of the environment that is looked for


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name would hold a secret: `hub_token`, `api_key`, `password`."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_")
    return bool(_NAME.search(snake)) and not _NO_SECRET.match(snake)


def kind_of_secret(text: str, name: str = "") -> str | None:
    """The kind of secret in `text`, None if there is none. `name` is the setting's."""
    for variable, value in os.environ.items():
        there = len(value) >= _SHORTEST and value in text  # a shorter one could be anything
        if there and is_secret_name(variable) and not os.path.exists(value):
            return f"the value of {variable}"
    for kind, pattern in _VALUES.items():
        if pattern.search(text) and not (kind == "a W&B key" and _COMMIT.search(name)):
            return kind
    return None


def check_values(values: Any, where: str) -> None:
    """Refuse settings with a secret in them, which came from the file `where`; the ConfigError
    names the key's path, not the value."""
    for path, name, value in _leaves(values, ""):
        if is_secret_name(name) and value and isinstance(value, str):
            raise ConfigError(f"{where}: {path}: a secret has no place here; {_WHAT_TO_DO}")
        for text in (value, name):
            if isinstance(text, str) and (kind := kind_of_secret(text, path)):
                shown = path if text is value else (path.rpartition(".")[0] or "the top")
                raise ConfigError(f"{where}: {shown} holds {kind}; {_WHAT_TO_DO}")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line with a secret on it, before anything can print or keep it; the
    ConfigError names the setting or the argument's place, not the value."""
    for number, argument in enumerate(arguments, start=1):
        name, equals, value = argument.partition("=")
        # A number is none: `max_new_token=5` is a slip that deserves its own message.
        given = (bool(value) and not value.isdecimal()) or name.startswith("-")
        if given and is_secret_name(name.lstrip("-").rpartition(".")[2]):
            raise ConfigError(f"{name}: a secret has no place on a command line; {_WHAT_TO_DO}")
        if kind := kind_of_secret(name) or kind_of_secret(value, name):
            shown = f"argument {number}" if not equals or kind_of_secret(name) else name
            raise ConfigError(f"{shown} holds {kind}; {_WHAT_TO_DO}")


def _leaves(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, name, value) of everything in nested mappings and lists that is neither."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value, start=1):
            yield from _leaves(inner, f"{path}[{number}]", name)
    else:
        yield path, name, value
