"""Rewards by name: what a configuration may ask for, and the check that it will work.

    reward = resolve("correctness")                  # a registered name
    reward = resolve("my_rewards.py:short_reward")   # a function in a file, from the working folder
    reward = resolve("package.module:function")      # a function in an importable module
    print(describe("correctness", check_reward("correctness", reward, sample_row)))

Standard library only, so that a reward can be read, tested and reused without a training stack.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, SupportsFloat, TypeAlias

from rewards.gsm8k import correctness_reward, format_reward

# Called by trl with keywords: prompts, completions, completion_ids, each dataset column, and more.
RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]

REWARDS: dict[str, RewardFunction] = {
    "correctness": correctness_reward,
    "format": format_reward,
}
OF_NUMBERS: tuple[RewardFunction, ...] = (correctness_reward, format_reward)
"""Those that can judge only replies to problems whose answer is a number."""


class RewardError(ValueError):
    """A reward that does not exist, cannot be loaded, or does not keep to trl's contract."""


def resolve(spec: str) -> RewardFunction:
    """The reward function that `spec` names; see the module's docstring for its three forms.
    Loading a file or a module runs it. Raises RewardError where nothing callable is there."""
    if spec in REWARDS:
        return REWARDS[spec]
    location, _, name = spec.rpartition(":")
    if not location or not name:
        raise RewardError(
            f"no reward is called {spec!r}{_nearest(spec, REWARDS)}; registered: "
            f"{', '.join(sorted(REWARDS))}. A custom one is path/to/file.py:function or "
            "package.module:function"
        )
    members = vars(_load(location))
    if name not in members:
        functions = [key for key, value in members.items() if callable(value)]
        raise RewardError(f"{location} has no function {name!r}{_nearest(name, functions)}")
    function: RewardFunction = members[name]
    if not callable(function):
        raise RewardError(f"{spec} is {_a(function)}, not a function")
    return function


def check_reward(
    name: str,
    function: RewardFunction,
    sample_row: Mapping[str, object],
    texts: Sequence[str] | None = None,
) -> list[float | None]:
    """The rewards of `texts` as completions of one dataset row, by calling `function` as trl does.

    The texts are by default three: empty, right in form, and free. Completions are messages where
    the row's `prompt` is, else strings. Raises RewardError where the function is asynchronous, does
    not take trl's keywords, or breaks the contract as in `score`.
    """
    if texts is None:
        answer = sample_row.get("answer", "1")
        texts = ["", f"I add the two.\n<answer>{answer}</answer>", "The total is 12."]
    keywords = trl_keywords(sample_row, texts)
    if inspect.iscoroutinefunction(function):
        raise RewardError(f"reward {name!r} is asynchronous; write it with a plain `def`")
    try:
        inspect.signature(function).bind(**keywords)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"reward {name!r} cannot be called as trl does: {error}. It gets the keywords "
            f"{', '.join(keywords)}; end its parameters with **columns to take those it ignores"
        ) from error
    return score(name, function, keywords)


def describe(name: str, values: Sequence[float | None]) -> str:
    """One line on the values of a check: their range, and how many could not be scored."""
    scored = [value for value in values if value is not None]
    seen = f"{min(scored):g} to {max(scored):g}" if scored else "nothing"
    unscored = f", {len(values) - len(scored)} not scored" if None in values else ""
    return f"{name}: {seen} on {len(values)} sample completions{unscored}"


def score(name: str, function: RewardFunction, keywords: Mapping[str, Any]) -> list[float | None]:
    """The rewards that `function` gives to the completions in `keywords`, one float or None each.

    Any number counts: Python's, NumPy's, a boolean, a tensor of one element. NaN counts as None.
    Raises RewardError where the function raises or returns something else; the message names the
    reward and the completion.
    """
    count = len(keywords["completions"])
    try:
        values = function(**keywords)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error} ({frame.filename}, line "
            f"{frame.lineno})"
        ) from error
    if not isinstance(values, list | tuple):
        raise RewardError(f"reward {name!r} returned {_a(values)}, not a list")
    if len(values) != count:
        number = "1 value" if len(values) == 1 else f"{len(values)} values"
        raise RewardError(f"reward {name!r} returned {number} for {count} completions")
    return [_number(name, index, value, keywords) for index, value in enumerate(values)]


def _number(name: str, index: int, value: object, keywords: Mapping[str, Any]) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.inf
    except (TypeError, ValueError, RuntimeError):  # an array of several numbers
        number = math.inf
    if math.isinf(number):
        completion = keywords["completions"][index]
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        raise RewardError(
            f"reward {name!r} returned {value!r} ({_a(value)}) for completion {index + 1}, which "
            f"begins {text[:60]!r}; return a finite number, or None for what has no score"
        )
    return None if math.isnan(number) else number


def _a(value: object) -> str:
    """`a str` or `an int`, for messages."""
    kind = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def trl_keywords(
    row: Mapping[str, object], texts: Sequence[str], ids: Sequence[Sequence[int]] | None = None
) -> dict[str, object]:
    """The keywords trl 1.15 calls a reward with, for completions of one row. `ids` are the token
    ids of each completion, by default one 0. The trainer's state is that of the first step."""
    prompt = row.get("prompt", "")
    completions: list[object] = list(texts)
    count = len(completions)
    if not isinstance(prompt, str):
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    columns = {
        key: [value] * count
        for key, value in row.items()
        if key not in ("prompt", "completion", "completion_ids")
    }
    return {
        "prompts": [prompt] * count,
        "completions": completions,
        "completion_ids": [[0]] * count if ids is None else [list(each) for each in ids],
        **columns,
        "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
        "log_extra": lambda column, values: None,
        "log_metric": lambda key, value: None,
    }


def _load(location: str) -> ModuleType:
    """The module at a dotted name or, relative to the working folder, in a file."""
    if not location.endswith(".py") and "/" not in location:
        try:
            return importlib.import_module(location)
        except Exception as error:
            kind = type(error).__name__
            raise RewardError(f"{location} failed to import: {kind}: {error}") from error
    path = Path(os.path.expanduser(location)).resolve()
    if not os.path.isfile(path):
        raise RewardError(f"no reward file {path}")
    # Each path has its own name, the same in every process.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a function's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RewardError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    return module


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
