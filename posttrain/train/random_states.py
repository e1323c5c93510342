"""Save and restore RNG states."""

import random
from collections.abc import Callable


def random_states() -> Callable[[], None]:
    """Returns a function that restores the RNG states of now: those of a checkpoint."""
    import numpy
    import torch

    python, numbers = random.getstate(), numpy.random.get_state()
    cpu, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all()

    def restore() -> None:
        random.setstate(python)
        numpy.random.set_state(numbers)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)

    return restore
