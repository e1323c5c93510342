"""The arguments of a trainer: those requested, and how trl or Unsloth changed them."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from posttrain.base.errors import ConfigError, did_you_mean
from posttrain.model import runtime
from posttrain.run.folder import RunFolder
from posttrain.settings import Training

# What libraries raise for arguments that they do not take.
REFUSALS = (
    *(AssertionError, AttributeError, ImportError, KeyError, NotImplementedError),
    *(OSError, TypeError, ValueError),
)


@contextlib.contextmanager
def refused_by(name: str) -> Iterator[None]:
    """What `name`, a class of a library, refuses of its arguments becomes a ConfigError."""
    try:
        yield
    except REFUSALS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"training: {name} refuses it: {message}") from error


def build_arguments(
    config_class: Any, training: Training, owned: dict[str, Any], verbose: bool
) -> tuple[Any, dict[str, Any]]:
    """The trainer's config object, and all arguments that were requested. Raises ConfigError for a
    value that a library refuses, which may be later: what the trainer makes of them, such as the
    optimizer, is tried out here without a model."""
    requested = {**training.model_dump(exclude={"extra"}), **owned, **training.extra}
    with runtime.quiet(verbose), refused_by(config_class.__name__):
        arguments = config_class(**requested)
        _try_out(arguments)
    return arguments, requested


def _try_out(arguments: Any) -> None:
    """Make the parts of a trainer that need arguments alone, on a weight of one number."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from torch.utils.data import DataLoader
    from transformers import GenerationConfig, Trainer
    from transformers.optimization import get_scheduler

    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    if isinstance(optimizer_class, type):  # else a function of the model
        optimizer = optimizer_class(weights, **options)
    else:
        optimizer = torch.optim.SGD(weights, arguments.learning_rate)
    steps = max(arguments.max_steps, 1)
    kind, warmup = arguments.lr_scheduler_type, arguments.get_warmup_steps(steps)
    get_scheduler(kind, optimizer, warmup, steps, arguments.lr_scheduler_kwargs)
    names = ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context")
    DataLoader([0], **{name: getattr(arguments, f"dataloader_{name}") for name in names})
    if getattr(arguments, "activation_offloading", False) and not torch.cuda.is_available():
        raise ConfigError(
            "training.extra.activation_offloading: there is no GPU to offload from; leave it out"
        )
    known = {
        "gradient_checkpointing_kwargs": {
            *inspect.signature(checkpoint).parameters,
            *("every_n_layers", "offload"),  # transformers' own
        },
        "generation_kwargs": vars(GenerationConfig()).keys(),
    }
    for name, keys in known.items():
        for key in getattr(arguments, name, None) or {}:
            if key not in keys:
                raise ConfigError(
                    f"training.extra.{name}: there is no {key!r}.{did_you_mean(key, keys)}"
                )


def owned_arguments(run: RunFolder, name: str, report_to: Sequence[str]) -> dict[str, Any]:
    """The arguments that the user cannot set, the same for every trainer."""
    return {
        "output_dir": str(run.checkpoints.staging),
        "run_name": name,
        "report_to": [name for name in report_to if name != "wandb"] or "none",  # wandb_log's
        "disable_tqdm": True,
        "save_strategy": "steps",
        "logging_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
    }


def changes(requested: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Arguments that trl or Unsloth changed, which they do without a message (precision, optimizer,
    batch size): `{name: {asked, used}}`, both as JSON has them."""
    changed = {}
    for name, value in requested.items():
        wanted, used = _as_json(value), _as_json(getattr(arguments, name, None))
        if value is not None and not _same(wanted, used):  # None lets the library choose
            changed[name] = {"asked": wanted, "used": used}
    return changed


def _as_json(value: Any) -> Any:
    """A value that JSON can hold: what has no form in JSON, or is not finite, as its text."""
    return from_json(to_json(value, inf_nan_mode="strings", fallback=str))


def _same(wanted: Any, used: Any) -> bool:
    """Whether two values are equal. transformers changes the form of some: it puts a value in a
    list, makes 'none' an empty list, and adds defaults to a mapping."""
    if isinstance(wanted, dict) and isinstance(used, dict):
        return all(key in used and used[key] == value for key, value in wanted.items())
    return used in (wanted, [wanted]) or (wanted, used) == ("none", []) or str(used) == str(wanted)


def report_changes(requested: dict[str, Any], arguments: Any) -> dict[str, dict[str, Any]]:
    """Print the changed arguments, one line each, and return them."""
    changed = changes(requested, arguments)
    for name, values in changed.items():
        print(f"note: training.{name} was {values['asked']!r}; here it is {values['used']!r}")
    return changed
