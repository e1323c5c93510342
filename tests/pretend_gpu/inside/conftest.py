"""Runs inside this process, as the reliability tests have them."""

import pytest

from tests.reliability.inside import on_forward, own_handlers

__all__ = ["device", "on_forward", "own_handlers"]


@pytest.fixture(scope="session", autouse=True)
def device() -> object:
    from posttrain.model import runtime

    return runtime.start(verbose=False, threads=1)
