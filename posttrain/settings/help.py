"""What `--help` says of the settings, and the answers to a command line that argparse refuses."""

import argparse
import textwrap
import types
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from posttrain.base.terminal import prose_width
from posttrain.settings import Section

WORDS = {
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
    "model.name",
    "model.max_seq_length",
    "model.load_in_4bit",
    "lora.r",
    "data.train.path",
    "data.validation",
    "data.format",
    "data.eval.path",
    "prompt.system",
    "rewards",
    "training.max_steps",
    "training.num_train_epochs",
    "training.learning_rate",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.num_generations",
    "training.max_completion_length",
    "training.beta",
    "training.loss_type",
    "training.seed",
    "evaluation.limit",
    "evaluation.every",
    "run.name",
    "run.max_minutes",
    "export.to",
)
"""What people change; the rest is for `--help all`."""


class Parser(argparse.ArgumentParser):
    """argparse's, which also knows how settings and the config are given."""

    def __init__(self, settings_class: type[Section], story: str, **options: Any) -> None:
        super().__init__(
            description=wrapped(story),
            epilog="what people change most (section.key: type = default without a YAML):\n"
            + listed(settings_class, "")
            + "\n\n--help all lists every setting, --help lora those with 'lora' in their name.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            **options,
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
        self.words: Sequence[str] = ()
        """The command line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2, the usage and what to write instead."""
        configs = [word for word in self.words if word.endswith((".yaml", ".yml"))]
        if message.startswith("unrecognized arguments:"):
            message = f"{message}; {self._as_settings(message.split()[2])}"
        elif "--config" in message and configs and "--config" not in self.words:
            message = f"{message}; write it as --config {configs[0]}"
        super().error(message)

    def _as_settings(self, unknown: str) -> str:
        name, _, value = unknown.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not value and unknown in self.words:
            value = next(iter(self.words[list(self.words).index(unknown) + 1 :]), "")
        paths = [path for path in setting_paths(self.settings_class) if path.endswith(f".{name}")]
        if not paths:
            return "settings are given as section.key=value, and --help all lists them"
        said = [f"{path}={value or 'VALUE'}" for path in (name, *paths) if "." in path]
        return f"settings are given as {' or '.join(said)}"


class _Help(argparse.Action):
    """What `--help`, `--help all` and `--help WORD` print, after which the command ends."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, values: Any, option: str | None = None
    ) -> NoReturn:
        assert isinstance(parser, Parser)
        if not values:
            parser.print_help()
            parser.exit()
        if not (found := listed(parser.settings_class, values)):
            parser.error(f"no setting has '{values}' in its name; --help all lists them")
        print(found)
        parser.exit()


def section_of(annotation: Any) -> type[Section] | None:
    """The Section class in an annotation: `Source`, `Source | None` or `list[Source]`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def setting_paths(settings_class: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """`training.max_steps` and so on, for every setting."""
    for name, field in settings_class.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None or get_origin(field.annotation) is list:
            yield prefix + name
        else:
            yield from setting_paths(inner, f"{prefix}{name}.")


def describe(settings_class: type[Section], prefix: str = "") -> dict[str, str]:
    """Help for every setting by its path, two lines each: path, type and default; what it means."""
    entries: dict[str, str] = {}
    for name, field in settings_class.model_fields.items():
        path = prefix + name
        inner = section_of(field.annotation)
        if inner is not None and get_origin(field.annotation) is not list:
            if field.annotation is not inner:
                entries[path] = f"  {path}: section = null\n      {field.description}"
            entries |= describe(inner, f"{path}.")
            continue
        default = "(required)" if field.is_required() else f"= {_yaml(field.default)}"
        meaning = " ".join((field.description or "").split())
        entries[path] = f"  {path}: {in_words(field.annotation)} {default}\n      {meaning}"
    return entries


def listed(settings_class: type[Section], word: str = "all") -> str:
    """The settings with `word` in their path, in lines that fit the terminal. `all` is all of them,
    with a blank line between sections, and no word at all those that people change most."""
    entries = describe(settings_class)
    wanted = {path: word == "all" or (word in path if word else path in OFTEN) for path in entries}
    sections = groupby((path for path in entries if wanted[path]), lambda p: p.partition(".")[0])
    blocks = ("\n".join(_entry(entries[path]) for path in paths) for _, paths in sections)
    return ("\n\n" if word == "all" else "\n").join(blocks)


def in_words(annotation: Any) -> str:
    """A type in YAML's words: `integer`, `text | null`, `list of {path, limit}`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(_yaml, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(map(in_words, inner))
    if origin is list:
        kind = in_words(inner[0])
        return f"list of {f'({kind})' if ' | ' in kind else kind}"
    if origin is dict:
        return f"mapping of {in_words(inner[0])} to {in_words(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _entry(entry: str) -> str:
    """An entry of describe() in lines that fit the terminal."""
    head, meaning = (line.strip() for line in entry.split("\n", 1))
    indents = (("  ", "        "), ("      ", "      "))
    return "\n".join(
        textwrap.fill(
            text,
            prose_width(),
            initial_indent=first,
            subsequent_indent=then,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for text, (first, then) in zip((head, meaning), indents, strict=True)
    )


def wrapped(story: str) -> str:
    """Paragraphs in lines that fit the terminal; indented ones, which are examples, as they are."""
    return "\n\n".join(
        paragraph
        if paragraph.startswith(" ")
        else textwrap.fill(
            " ".join(paragraph.split()),
            prose_width(),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for paragraph in story.strip("\n").split("\n\n")
    )
