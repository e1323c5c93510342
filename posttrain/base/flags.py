"""The command line of commands without a config: a parser, and types that it checks."""

import argparse
import math

from posttrain.base.paths import run_command


def parser(command: str, story: str | None) -> argparse.ArgumentParser:
    """The parser of `./run COMMAND`; --help shows `story` as it is written."""
    return argparse.ArgumentParser(
        prog=f"{run_command()} {command}",
        description=story,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def count(text: str) -> int:
    """A number of things, 1 or more."""
    return int(_checked(text, text.isdecimal() and int(text) >= 1, "at least 1"))


def seed(text: str) -> int:
    """A seed that every library takes."""
    fits = text.isdecimal() and int(text) < 2**32
    return int(_checked(text, fits, f"a whole number below {2**32}, 0 or more"))


def positive(text: str) -> float:
    """A finite number above 0."""
    return float(_checked(text, 0 < _number(text) < math.inf, "above 0"))


def not_negative(text: str) -> float:
    """A finite number, 0 or more."""
    return float(_checked(text, 0 <= _number(text) < math.inf, "0 or more"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _checked(text: str, fits: bool, should: str) -> str:
    if not fits:
        raise argparse.ArgumentTypeError(f"must be {should}, got {text}")
    return text
