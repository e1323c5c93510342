"""What the installed trl's config classes take, read from their source.

The classes themselves are out of reach before a run starts: importing them takes torch and many
seconds.
"""

import ast
import importlib.util
from pathlib import Path


def _classes(relative: str, *names: str) -> list[ast.ClassDef]:
    """Classes of a library's file `package/file.py`."""
    package, _, rest = relative.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / rest).read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]


def enum_values(source: str) -> list[str]:
    """The values of an Enum, `package/file.py:Name`."""
    (definition,) = _classes(*source.split(":"))
    return [
        str(item.value.value)
        for item in definition.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def config_fields(config_class: str) -> dict[str, str]:
    """Names and types of the fields of a trl config class and its parents, from their source."""
    parents = (
        "trl/trainer/base_config.py:_BaseConfig",
        "transformers/training_args.py:TrainingArguments",
    )
    return {
        item.target.id: ast.unparse(item.annotation)
        for source in (config_class, *parents)
        for definition in _classes(*source.split(":"))
        for item in definition.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
