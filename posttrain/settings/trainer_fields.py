"""What the installed trl's config classes take, read from their source.

The classes themselves are out of reach before a run starts: importing them takes torch and many
seconds.
"""

import ast
import importlib.util
from pathlib import Path

from posttrain.base.errors import ConfigError


def enum_values(source: str) -> list[str]:
    """The values of an Enum of a library, as `package/file.py:Name`, read from its source."""
    relative, name = source.split(":")
    tree = _parse(relative)
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return [
        str(item.value.value)
        for item in found.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


def _parse(relative: str) -> ast.Module:
    package, _, rest = relative.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the package {package} is not installed; run ./run doctor")
    return ast.parse((Path(spec.origin).parent / rest).read_text(encoding="utf-8"))


def config_fields(config_class: str) -> dict[str, str]:
    """Names and types of the fields of a trl config class and its parents, from their source.

    The classes themselves are out of reach here: importing them takes torch and many seconds.
    """
    relative, name = config_class.split(":")
    sources = [relative, "trl/trainer/base_config.py", "transformers/training_args.py"]
    fields: dict[str, str] = {}
    for source in sources:
        for node in _parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name in (
                name,
                "_BaseConfig",
                "TrainingArguments",
            ):
                fields |= {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return fields
