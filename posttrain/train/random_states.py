"""Save and restore RNG states."""

import random
from typing import Any


def random_states() -> dict[str, Any]:
    """The RNG states that transformers saves in a checkpoint."""
    import numpy
    import torch

    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore(states: dict[str, Any]) -> None:
    """Restore the RNG states that `random_states` returned."""
    import numpy
    import torch

    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    torch.cuda.set_rng_state_all(states["cuda"])
