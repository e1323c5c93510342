"""Unsloth has to be imported before trl and transformers, once for all tests of this folder."""

from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.export import llama_cpp
from posttrain.model import runtime
from posttrain.model.device import Device


@pytest.fixture(scope="session", autouse=True)
def device() -> Device:
    return runtime.start(verbose=False, threads=None)


@pytest.fixture(scope="session")
def tree() -> Path:
    """The pinned llama.cpp, for its converter alone: nothing is compiled."""
    try:
        return llama_cpp.find_tree(None)
    except ConfigError as error:
        pytest.skip(f"llama.cpp is not in the cache and cannot be fetched: {error}")
