"""What the tests of this folder share. Unsloth has to be imported before trl and transformers."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.export import llama_cpp
from posttrain.model import runtime
from posttrain.model.device import Device
from tests.reliability.inside import own_handlers

__all__ = ["own_handlers"]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """The libraries' own warnings are not what is tested here, but where a test marks otherwise."""
    if not item.get_closest_marker("filterwarnings"):
        item.add_marker(pytest.mark.filterwarnings("ignore"))


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}; name one in $CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()
