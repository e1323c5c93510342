"""What transformers' trainer calls while it trains."""

from typing import TYPE_CHECKING, Any


class Callback:
    """A TrainerCallback, of which transformers needs only the methods.

    Its class is not imported: Unsloth has to come before transformers.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_"):
                raise AttributeError(name)
            return lambda *_, **__: None
