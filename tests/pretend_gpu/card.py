"""The card that is pretended: what torch.cuda says of it. Imports no torch."""

import os
from types import SimpleNamespace

from tests.pretend_gpu import CARD

CAPABILITY = tuple(int(part) for part in os.environ.get(CARD, "8.0").split("."))
NAME = "Pretended card {}.{}".format(*CAPABILITY)
MEMORY = int(float(os.environ.get("PRETEND_GPU_MEMORY_GB", "16")) * 2**30)
FREE = MEMORY - 2**30  # what Unsloth sizes its chunks by
BFLOAT16 = CAPABILITY >= (8, 0)
PROPERTIES = SimpleNamespace(
    name=NAME,
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    total_memory=MEMORY,
    multi_processor_count=40,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=101376,
    shared_memory_per_multiprocessor=102400,
    L2_cache_size=2**22,
    is_integrated=0,
    is_multi_gpu_board=0,
    gcnArchName="",
    uuid="pretended",
    pci_bus_id=0,
    pci_device_id=0,
    pci_domain_id=0,
    clock_rate=1,
    memory_clock_rate=1,
    memory_bus_width=1,
)


def is_cuda(device: object) -> bool:
    """Whether an argument names a CUDA device: "cuda", "cuda:0", or torch's own object."""
    return (getattr(device, "type", None) or str(device).partition(":")[0]) == "cuda"
