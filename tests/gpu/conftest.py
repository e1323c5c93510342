"""Without a GPU that CUDA can use, the tests of this folder are skipped; asking takes no torch."""

import ctypes
from functools import cache
from pathlib import Path

import pytest

from tests.pretend_gpu import installed


@cache
def cuda_devices() -> int:
    """How many GPUs the CUDA driver has; 0 without a driver. The pretended card is one."""
    if installed():
        return 1
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("gpu") and not cuda_devices():
            item.add_marker(pytest.mark.skip(reason="no GPU that CUDA can use"))
