"""Autocast and the loss scaler of "cuda" act on the CPU."""

from typing import Any

from tests.pretend_gpu.hooks import after_import, put


def _here(device: Any) -> Any:
    return "cpu" if device in (None, "cuda") else device


@after_import("torch")
def autocast_on_the_cpu(torch: Any) -> None:
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    set_enabled, set_dtype = torch.set_autocast_enabled, torch.set_autocast_dtype
    put(torch, "is_autocast_enabled", lambda device=None: enabled(_here(device)))
    put(torch, "get_autocast_dtype", lambda device="cuda": dtype(_here(device)))
    put(torch, "get_autocast_gpu_dtype", lambda: dtype("cpu"))
    put(torch, "set_autocast_dtype", lambda device, value: set_dtype(_here(device), value))
    put(torch, "set_autocast_gpu_dtype", lambda value: set_dtype("cpu", value))

    def switch(*args: Any) -> None:
        device, value = ("cpu", args[0]) if len(args) == 1 else args
        set_enabled(_here(device), value)

    put(torch, "set_autocast_enabled", switch)
    _autocast_class(torch)
    make_scaler = torch.amp.GradScaler.__init__

    def scaler(self: Any, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        make_scaler(self, _here(device), *args, **kwargs)

    put(torch.amp.GradScaler, "__init__", scaler)


def _autocast_class(torch: Any) -> None:
    autocast = torch.amp.autocast_mode.autocast
    make = autocast.__init__

    def made(
        self: Any,
        device_type: str,
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: Any = None,
    ) -> None:
        if device_type == "cuda" and dtype is None:
            dtype = torch.float16  # CUDA's default
        if dtype == torch.float32:  # CUDA takes it; the CPU warns and switches itself off
            dtype, enabled = torch.bfloat16, False
        make(self, _here(device_type), dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    put(autocast, "__init__", made)

    def made_for_cuda(
        self: Any, enabled: bool = True, dtype: Any = torch.float16, cache_enabled: bool = True
    ) -> None:
        make(self, "cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    put(torch.cuda.amp.autocast, "__init__", made_for_cuda)
