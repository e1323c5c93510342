"""What holds for every test: neither the user's cache nor their W&B account is touched."""

import os

import pytest

from posttrain.base.process import share_the_processor

os.environ["WANDB_MODE"] = "disabled"
share_the_processor()  # several processes at once on few cores


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["POSTTRAIN_CACHE"] = str(tmp_path_factory.mktemp("posttrain_cache"))
