"""Folders of real models, for tests that are skipped where the Python index is out of reach."""

from pathlib import Path

import pytest

from tests.real import weights


def _folder(name: str) -> Path:
    try:
        return weights.folder(name)
    except weights.OutOfReachError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32."""
    return _folder("smollm2")


@pytest.fixture(scope="session")
def qwen_coder() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct in bfloat16; only for tests marked long (478 MB to fetch)."""
    return _folder("qwen-coder")
