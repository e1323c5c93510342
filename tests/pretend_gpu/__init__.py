"""A pretended CUDA card: Unsloth's GPU modules run on a machine without one. README.md tells how.

This module is imported at the start of every process that has the card, before torch: it imports
nothing but the standard library.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).parent / "site"
CARD = "PRETEND_GPU"
"""Environment variable with the card's compute capability: 8.0, or 7.5 for a T4."""
OUTSIDE = "PRETEND_GPU_OUTSIDE"
"""Environment variable with the socket of a tests.warm server that has no card."""


def installed() -> bool:
    """Whether this process has the card."""
    return CARD in os.environ


def environment(capability: str = "8.0") -> dict[str, str]:
    """The environment in which Python, and what it starts, has the card."""
    path = [str(SITE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        CARD: capability,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        # Generated trainers of their own: those of a machine without a GPU are others.
        "UNSLOTH_COMPILE_LOCATION": str(ROOT / "outputs" / ".unsloth_cache" / "pretend_gpu"),
        "UNSLOTH_TRITON_FAST_LAUNCH": "0",
        "TRITON_INTERPRET": "1",  # what is left of Triton is interpreted, for lack of a compiler
        "TORCHDYNAMO_DISABLE": "1",
    }
