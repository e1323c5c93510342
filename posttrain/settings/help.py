"""`--help` of the settings, and advice for a command line that argparse refuses."""

import argparse
import textwrap
import types
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from posttrain.base.terminal import prose_width
from posttrain.settings.section import Section

TYPES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true | false",
    list: "list",
    dict: "mapping",
    types.NoneType: "null",
    Any: "any value",
}
OFTEN = (
    *("model.name", "model.max_seq_length", "model.load_in_4bit", "lora.r"),
    *("data.train.path", "data.validation", "data.format", "data.eval.path"),
    *("prompt.system", "rewards", "training.max_steps", "training.num_train_epochs"),
    *("training.learning_rate", "training.per_device_train_batch_size"),
    *("training.gradient_accumulation_steps", "training.num_generations"),
    *("training.max_completion_length", "training.beta", "training.loss_type", "training.seed"),
    *("evaluation.limit", "evaluation.every", "run.name", "run.max_minutes", "export.to"),
)
"""What people change; the rest is for `--help all`."""


class Parser(argparse.ArgumentParser):
    """argparse's, which also knows how settings and the config are given."""

    def __init__(
        self, settings_class: type[Section], story: str | None, words: Sequence[str], prog: str
    ) -> None:
        super().__init__(
            description=story,
            epilog="what people change most (section.key: type = default without a YAML):\n"
            + listed(settings_class, "")
            + "\n\n--help all lists every setting, --help lora those with 'lora' in their name.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
            prog=prog,
        )
        self.add_argument(
            "-h",
            "--help",
            nargs="?",
            metavar="all|WORD",
            action=_Help,
            help="show this and the settings that people change most; all settings; or those with "
            "WORD in their name",
        )
        self.settings_class = settings_class
        self.words = words
        """The command line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2, the usage and what to write instead."""
        configs = [word for word in self.words if word.endswith((".yaml", ".yml"))]
        if message.startswith("unrecognized arguments:"):
            name = message.split()[2].lstrip("-").partition("=")[0].replace("-", "_")
            paths = [p for p in describe(self.settings_class) if f".{p}".endswith(f".{name}")]
            given = " or ".join(f"{path}=VALUE" for path in paths) or "section.key=value"
            message += f"; settings are given as {given}, and --help all lists them"
        elif "--config" in message and configs and "--config" not in self.words:
            message += f"; write it as --config {configs[0]}"
        super().error(message)


class _Help(argparse.Action):
    """What `--help`, `--help all` and `--help WORD` print, after which the command ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, values: Any, option: str | None = None
    ) -> NoReturn:
        assert isinstance(parser, Parser)
        if not values:
            parser.print_help()
        elif settings := listed(parser.settings_class, values):
            print(settings)
        else:
            parser.error(f"no setting has '{values}' in its name; --help all lists them")
        parser.exit()


def section_of(annotation: Any) -> type[Section] | None:
    """The Section class in an annotation: `Source`, `Source | None` or `list[Source]`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def describe(settings_class: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, str]]:
    """By a setting's path: `path: type = default`, and what it means."""
    entries: dict[str, tuple[str, str]] = {}
    for name, field in settings_class.model_fields.items():
        path = prefix + name
        inner = section_of(field.annotation)
        meaning = " ".join((field.description or "").split())
        if inner is not None and get_origin(field.annotation) is not list:
            optional = field.annotation is not inner
            if optional:
                entries[path] = f"{path}: section = null", meaning
            for name, (head, text) in describe(inner, f"{path}.").items():
                needed = f"(required with {path})" if optional else "(required)"
                entries[name] = head.replace("(required)", needed), text
        else:
            default = "(required)" if field.is_required() else f"= {_yaml(field.default)}"
            entries[path] = f"{path}: {yaml_type(field.annotation)} {default}", meaning
    return entries


def listed(settings_class: type[Section], word: str = "all") -> str:
    """The settings with `word` in their path, in lines that fit the terminal. `all` is all of them,
    with a blank line between sections, and no word at all those that people change most."""
    entries = describe(settings_class)
    wanted = {path: word == "all" or (word in path if word else path in OFTEN) for path in entries}
    sections = groupby((path for path in entries if wanted[path]), lambda p: p.partition(".")[0])
    blocks = ("\n".join(_lines(*entries[path]) for path in paths) for _, paths in sections)
    return ("\n\n" if word == "all" else "\n").join(blocks)


def yaml_type(annotation: Any) -> str:
    """A type by its name in YAML: `integer`, `text | null`, `list of {path, limit}`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(_yaml, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(map(yaml_type, inner))
    if origin is list:
        kind = yaml_type(inner[0])
        return f"list of {f'({kind})' if ' | ' in kind else kind}"
    if origin is dict:
        return f"mapping of {yaml_type(inner[0])} to {yaml_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return TYPES.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _lines(head: str, meaning: str) -> str:
    """An entry of describe() in lines that fit the terminal."""
    fill = partial(
        textwrap.fill, width=prose_width(), break_long_words=False, break_on_hyphens=False
    )
    first = fill(head, initial_indent=" " * 2, subsequent_indent=" " * 8)
    return first + "\n" + fill(meaning, initial_indent=" " * 6, subsequent_indent=" " * 6)
