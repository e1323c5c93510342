"""What every section of the settings is: strict, frozen, documented."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: unknown keys and wrong types are refused, nothing is coerced but int to float."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
