"""Triton finds an active driver for the card; its kernels, where any is left, are interpreted."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from tests.pretend_gpu.card import CAPABILITY
from tests.pretend_gpu.hooks import after_import, put


@after_import("triton")
def answer_as_the_driver(triton: Any) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device=None: 0,
            set_current_device=lambda device: None,
            get_device_capability=lambda device=None: CAPABILITY,
            get_active_torch_device=lambda: import_module("torch").device("cuda", 0),
            get_device_interface=lambda: import_module("torch").cuda,
            get_benchmarker=lambda: lambda function, **_: (function(), [1.0, 1.0, 1.0])[1],
            get_empty_cache_for_benchmark=lambda: None,
            clear_cache=lambda cache: None,
            map_python_to_cpp_type=lambda kind: "void*",
        )
    )


@after_import("triton.backends.nvidia.driver")
def have_no_libraries_to_look_for(module: Any) -> None:
    """Where libcuda is not found, Unsloth runs ldconfig as root while it is imported."""
    put(module, "libcuda_dirs", list)
