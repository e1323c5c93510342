"""torch.cuda and torch.accelerator answer for one card; streams and events do nothing."""

import contextlib
import os
import time
from types import FunctionType
from typing import Any

from tests.pretend_gpu.card import BFLOAT16, CAPABILITY, FREE, MEMORY, NAME, PROPERTIES
from tests.pretend_gpu.hooks import after_import, put


class Stream:
    """A stream on which everything has happened already."""

    priority = cuda_stream = stream_id = device_index = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        import torch

        self.device = torch.device("cuda", 0)

    def synchronize(self, *_: Any) -> None:
        pass

    wait_stream = wait_event = synchronize

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return 0

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, 0)


class Event:
    """A moment of the processor's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.record()

    def record(self, *_: Any) -> None:
        self.time = time.perf_counter()

    def wait(self, *_: Any) -> None:
        pass

    synchronize = wait

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return (other.time - self.time) * 1000


class DeviceGuard(contextlib.AbstractContextManager["DeviceGuard"]):
    """torch.cuda.device: there is only one."""

    def __init__(self, *_: Any) -> None:
        self.idx = self.prev_idx = 0

    def __exit__(self, *_: object) -> None:
        pass


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _states(torch: Any) -> Any:
    """The card's random state: random numbers "on the card" come from the CPU's generator, whose
    state is saved beside this one."""
    return torch.zeros(16, dtype=torch.uint8)


def _cards() -> int:
    """PRETEND_GPU_CARDS of them (default 1), as far as CUDA_VISIBLE_DEVICES shows them."""
    cards = [str(index) for index in range(int(os.environ.get("PRETEND_GPU_CARDS", "1")))]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(cards)).split(",")
    return len([index for index in shown if index in cards])


def _answers(torch: Any) -> dict[str, Any]:
    """torch.cuda's names and what they are now."""
    nothing = (
        *("reset_peak_memory_stats", "reset_max_memory_allocated", "empty_cache", "synchronize"),
        *("reset_accumulated_memory_stats", "ipc_collect", "set_stream", "set_device", "init"),
        *("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "_lazy_init"),
        *("set_rng_state_all", "set_per_process_memory_fraction", "set_sync_debug_mode"),
    )
    zero = (
        *("current_device", "memory_allocated", "memory_reserved", "max_memory_allocated"),
        *("max_memory_reserved", "initial_seed", "utilization", "get_sync_debug_mode"),
        *("_get_device_index", "_maybe_exchange_device", "_exchange_device"),
        "caching_allocator_alloc",
    )
    return {
        **dict.fromkeys(nothing, _nothing),
        **dict.fromkeys(zero, _zero),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": _cards,
        "_device_count_nvml": _cards,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_name": lambda device=None: NAME,
        "get_arch_list": lambda: ["sm_{}{}".format(*CAPABILITY)],
        "can_device_access_peer": lambda *_: False,
        "mem_get_info": lambda device=None: (FREE, MEMORY),
        "memory_stats": lambda device=None: {},
        "memory_summary": lambda *_, **__: "",
        "memory_snapshot": lambda *_: [],
        "get_rng_state": lambda device="cuda": _states(torch),
        "get_rng_state_all": lambda: [_states(torch)],
        "is_bf16_supported": lambda including_emulation=True: BFLOAT16 or including_emulation,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream=None: contextlib.nullcontext(),
        "Stream": Stream,
        "ExternalStream": Stream,
        "Event": Event,
        "device": DeviceGuard,
        "device_of": DeviceGuard,
    }


def _fresh(value: Any) -> Any:
    """A function of its own for each name: torch._dynamo refuses one function under two."""
    if not isinstance(value, FunctionType):
        return value
    return FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__
    )


@after_import("torch")
def answer_for_one_card(torch: Any) -> None:
    answers = {name: _fresh(value) for name, value in _answers(torch).items()}
    for name, value in answers.items():
        put(torch.cuda, name, value)
    for module in (torch.cuda.memory, torch.cuda.random, torch.cuda.streams):  # their origins
        for name, value in answers.items():
            if hasattr(module, name):
                setattr(module, name, value)
    for name in ("EmptyCache", "Synchronize", "Init", "SetDevice", "ClearCublasWorkspaces"):
        name = f"_cuda_{name[0].lower()}{name[1:]}"
        setattr(torch._C, name, _fresh(_nothing))
    for name in ("CurrentRawStream", "Device", "CurrentBlasHandle", "ConvBenchmarkEmptyCache"):
        setattr(torch._C, f"_cuda_get{name}", _fresh(_zero))
    torch._C._cuda_getDeviceCount = _cards
    torch._C._cuda_isCurrentStreamCapturing = lambda: False
    torch.cuda.default_generators = (torch.default_generator,)
    _accelerator(torch)


def _accelerator(torch: Any) -> None:
    nothing = ("set_device_index", "set_device_idx", "synchronize", "empty_cache", "set_stream")
    zero = ("current_device_index", "current_device_idx", "memory_allocated", "memory_reserved")
    answers = {
        **dict.fromkeys((*nothing, "reset_peak_memory_stats"), _nothing),
        **dict.fromkeys((*zero, "max_memory_allocated"), _zero),
        "is_available": lambda: True,
        "device_count": _cards,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_stream": lambda device=None: Stream(),
        "memory_stats": lambda device=None: {},
        "get_memory_info": lambda device=None: (FREE, MEMORY),
        "get_device_capability": lambda device=None: {},
    }
    for name, value in answers.items():
        put(torch.accelerator, name, _fresh(value))
