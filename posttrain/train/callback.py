"""What callbacks of transformers' trainer share: their base class, and the RNG states they keep."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


class Callback:
    """A TrainerCallback, of which transformers needs only the methods. Its class is not imported:
    Unsloth has to come before transformers."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda *_, **__: None


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
