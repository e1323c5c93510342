"""What every section of the settings is: strict, frozen, documented."""

from typing import Any

from pydantic import BaseModel, ConfigDict

FORMER = {
    "model.decode_graphs": False,
    "model.unsloth_vllm_standby": False,
    "lora.init": "default",
}
"""Settings that earlier versions had, and the value of each that changed nothing."""


def without_removed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` without settings of earlier versions that changed nothing, as in their runs."""
    for path, off in FORMER.items():
        section, _, name = path.partition(".")
        inner = values.get(section)
        if isinstance(inner, dict) and inner.get(name) == off:
            values = {**values, section: {k: v for k, v in inner.items() if k != name}}
    return values


class Section(BaseModel):
    """A section: unknown keys and wrong types are refused, nothing is coerced but int to float."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
