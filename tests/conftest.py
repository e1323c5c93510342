"""What holds for every test: neither the user's cache nor their W&B account is touched, and tests
that run beside each other do not compute with more threads than there are cores."""

import os

import pytest

from posttrain.base.process import share_the_processor

os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
share_the_processor()  # several processes at once on few cores


@pytest.fixture(scope="session", autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One for all workers: llama.cpp is fetched once, and llama-quantize, which takes minutes,
    built once."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if hasattr(request.config, "workerinput") else folder
    os.environ["POSTTRAIN_CACHE"] = str(shared / "posttrain_cache")


@pytest.fixture(autouse=True)
def no_variable_of_unsloth() -> None:
    """Unsloth sets it while it loads a model, and huggingface_hub warns of it in every process."""
    os.environ.pop("HF_HUB_ENABLE_HF_TRANSFER", None)
