"""Files of tensors are read to the CPU, whichever device is asked for."""

from typing import Any

from tests.pretend_gpu.card import is_cuda
from tests.pretend_gpu.hooks import after_import, put


def _here(device: Any) -> Any:
    return "cpu" if isinstance(device, int) or is_cuda(device) else device


@after_import("torch")
def load_to_the_cpu(torch: Any) -> None:
    real = torch.load

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return real(f, "cpu" if is_cuda(map_location) else map_location, *args, **kwargs)

    put(torch, "load", load)
    torch.serialization.load = load


@after_import("safetensors")
def open_on_the_cpu(safetensors: Any) -> None:
    real = safetensors.safe_open

    def safe_open(filename: Any, framework: str, device: Any = "cpu", **kwargs: Any) -> Any:
        return real(filename, framework, _here(device), **kwargs)

    put(safetensors, "safe_open", safe_open)


@after_import("safetensors.torch")
def load_file_to_the_cpu(module: Any) -> None:
    real = module.load_file

    def load_file(filename: Any, device: Any = "cpu", **kwargs: Any) -> Any:
        return real(filename, _here(device), **kwargs)

    put(module, "load_file", load_file)
