"""A reward that differs within every group, so that every side trains on all completions."""

from typing import Any


def length(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
    """Characters of each completion."""
    return [float(len(completion[-1]["content"])) for completion in completions]
