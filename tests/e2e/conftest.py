"""Unsloth has to be imported before trl and transformers, once for all tests of this folder."""

import pytest

from posttrain.model import runtime
from posttrain.model.device import Device


@pytest.fixture(scope="session", autouse=True)
def device() -> Device:
    return runtime.start(verbose=False, threads=None)
