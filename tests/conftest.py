"""No test reads or writes the user's own cache."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["POSTTRAIN_CACHE"] = str(tmp_path_factory.mktemp("posttrain_cache"))
