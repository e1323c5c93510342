"""YAML read strictly: a duplicate key is an error and `5e-6` is a number.

PyYAML follows YAML 1.1, where the last of two equal keys silently wins and `5e-6` (no dot) is a
string. The number rule here is the YAML 1.2 core schema's (https://yaml.org/spec/1.2.2, 10.3.2).
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from posttrain.base.errors import ConfigError, first_line, kind_of, quoted

_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads YAML 1.2 floats."""

    def construct_object(self, node: yaml.Node, deep: bool = True) -> Any:
        try:  # always deep: PyYAML then refuses an alias inside of what it stands for
            return super().construct_object(node, deep=True)
        except (AttributeError, KeyError, ValueError):  # !!int x, !!timestamp x, 5,000 digits
            line, kind = node.start_mark.line + 1, node.tag.rpartition(":")[2]
            what = f"{quoted(str(node.value))} cannot be read as {kind}"
            raise ConfigError(f"line {line}: not valid YAML: {what}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: the key {key!r} is not text; quote it")
            if key in seen:
                raise ConfigError(
                    f"line {line}: the key '{key}' is given twice (first on line {seen[key]}); "
                    "keep one"
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what _Loader would not read as text without quotes."""


# YAML 1.1 reads 010 as 8, 1:30 as 90, and dates.
_REPLACED = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    # An integer also matches _FLOAT; resolvers are tried in order.
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises ConfigError for bad syntax and for duplicate keys, with
    their line in `where`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}: {line}not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(f"{where}: not valid YAML: {first_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: lists or sections inside of others are too deep") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def dump_yaml(value: Any) -> str:
    """`value` as YAML that `parse_yaml` reads back as it is."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file; an empty file is an empty mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file at '{path}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file '{path}': {error}") from None
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected sections at the top, got {kind_of(value)}")
    return value
