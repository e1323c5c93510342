"""Tensors are on the CPU and say that they are on cuda:0.

A TorchFunctionMode sees every call of torch's Python API. In its arguments a CUDA device becomes
the CPU; asked for its device, a tensor of the CPU says cuda:0. The mode belongs to a thread, so
each new thread gets one, and it is off inside its own handler, so `Tensor.backward` turns it on
again for what the backward pass runs.
"""

import threading
from typing import Any

from tests.pretend_gpu.card import is_cuda
from tests.pretend_gpu.hooks import after_import, put


def _mode(torch: Any) -> Any:
    """The class of the mode; torch's classes are at hand only once it is imported."""
    from torch.overrides import TorchFunctionMode

    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    tensor = torch.Tensor
    device_of, is_on_cuda, is_on_cpu = (
        getattr(tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu")
    )

    def moved(arguments: tuple[Any, ...], from_first: bool) -> tuple[Any, ...]:
        """The arguments of Tensor.to and the like with the card's device as the CPU."""
        return tuple(
            cpu if i and (is_cuda(x) or (from_first and i == 1 and type(x) is int)) else x
            for i, x in enumerate(arguments)
        )

    def claims_cuda(x: Any) -> bool:
        return bool(device_of(x).type == "cpu")

    own: dict[Any, Any] = {
        device_of: lambda x: cuda if claims_cuda(x) else device_of(x),
        is_on_cuda: claims_cuda,
        is_on_cpu: lambda x: False,
        tensor.get_device: lambda x: 0,
        tensor.cuda: lambda x, *_, **__: x,
        tensor.pin_memory: lambda x, *_, **__: x,
        tensor.is_pinned: lambda x, *_, **__: False,
        tensor.record_stream: lambda *_: None,
    }

    class CUDAOnCPU(TorchFunctionMode):  # type: ignore[misc]  # torch is not followed
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            device = kwargs.get("device")
            if device is not None and (is_cuda(device) or type(device) is int):
                kwargs["device"] = cpu
            if kwargs.get("pin_memory"):
                del kwargs["pin_memory"]
            if func in own:
                return own[func](*args, **kwargs)
            if func is tensor.backward:
                with self:
                    renamed = {"grad_tensors" if k == "gradient" else k: kwargs[k] for k in kwargs}
                    return torch.autograd.backward(*args, **renamed)
            if func is tensor.to:
                return func(*moved(args, True), **kwargs)
            if func is tensor.type and len(args) > 1 and isinstance(args[1], str):
                return func(args[0], args[1].replace("torch.cuda.", "torch."))
            if len(args) > 1 and isinstance(args[-1], (str, torch.device)) and is_cuda(args[-1]):
                args = (*args[:-1], cpu)
            return func(*args, **kwargs)

    return CUDAOnCPU


@after_import("torch")
def claim_to_be_on_the_card(torch: Any) -> None:
    mode = _mode(torch)
    mode().__enter__()
    run = threading.Thread.run

    def run_with_mode(self: threading.Thread) -> None:
        with mode():
            run(self)

    threading.Thread.run = run_with_mode  # type: ignore[method-assign]


@after_import("torch")
def make_generators_on_the_cpu(torch: Any) -> None:
    real = torch.Generator

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, real)

    class Generator(metaclass=Kind):
        def __new__(cls, device: Any = "cpu") -> Any:
            return real("cpu" if is_cuda(device) or device == 0 else device)

    put(torch, "Generator", Generator)


@after_import("torch")
def recompute_as_on_a_card(torch: Any) -> None:
    """Gradient checkpointing keeps the random state of devices, and compares what it computes a
    second time by device too, which depends here on whether the mode is on: the rest will do."""
    from torch.utils import checkpoint

    put(checkpoint, "get_device_states", lambda *_: ([], []))
    put(checkpoint, "set_device_states", lambda *_, **__: None)
    put(checkpoint, "_infer_device_type", lambda *_: "cuda")
    checkpoint._allowed_determinism_checks_to_fns["default"] = lambda x: {
        "shape": x.shape,
        "dtype": x.dtype,
    }


@after_import("torch.utils.data.dataloader")
def pin_no_batches(dataloader: Any) -> None:
    real = dataloader.DataLoader.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **{**kwargs, "pin_memory": False})

    put(dataloader.DataLoader, "__init__", made)
