"""What holds for every test: neither the user's cache nor their W&B account is touched."""

import os

import pytest

os.environ["WANDB_MODE"] = "disabled"
# Several processes at once on few cores: waiting threads sleep, as policy.start has it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["POSTTRAIN_CACHE"] = str(tmp_path_factory.mktemp("posttrain_cache"))
