"""Triton finds an active driver for the card; its kernels, where any is left, are interpreted."""

from typing import Any

from tests.pretend_gpu.card import CAPABILITY
from tests.pretend_gpu.hooks import after_import, put


@after_import("triton")
def answer_as_the_driver(triton: Any) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: Any = None) -> int:
            return 0

        def set_current_device(self, device: Any) -> None:
            pass

        def get_device_capability(self, device: Any = None) -> Any:
            return CAPABILITY

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("cuda", 0)

        def get_device_interface(self) -> Any:
            import torch

            return torch.cuda

        def get_benchmarker(self) -> Any:
            return lambda function, **_: (function(), [1.0, 1.0, 1.0])[1]

        def get_empty_cache_for_benchmark(self) -> None:
            pass

        def clear_cache(self, cache: Any) -> None:
            pass

        def map_python_to_cpp_type(self, kind: str) -> str:
            return "void*"

    driver.set_active(Driver())


@after_import("triton.backends.nvidia.driver")
def have_no_libraries_to_look_for(module: Any) -> None:
    """Where libcuda is not found, Unsloth runs ldconfig as root while it is imported."""
    put(module, "libcuda_dirs", list)
