"""Fixtures of runs inside this process."""

from tests.reliability.inside import on_forward, own_handlers

__all__ = ["on_forward", "own_handlers"]
