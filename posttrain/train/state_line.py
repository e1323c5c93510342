"""One plain line that says how a run is doing."""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.base.progress import duration

Row = Mapping[str, Any]
"""A row of metrics.jsonl."""


def state_line(rows: Sequence[Row], max_steps: int) -> str:
    """The state at the last row, of `rows` since the line before; the first row counts as its end.

    Rewards, spread and truncation are means over the rows, so that one lucky batch is no news.
    """
    last = rows[-1]
    said = [*_problems(rows[1:] or rows), *_pairs(rows[1:] or rows)]
    steps, seconds = last["step"] - rows[0]["step"], last["seconds"] - rows[0]["seconds"]
    if steps > 0 and seconds > 0:
        tokens = (last.get("num_tokens") or 0) - (rows[0].get("num_tokens") or 0)
        if tokens > 0:
            said.append(f"{tokens / seconds:,.0f} tokens/s")
        if last["step"] < max_steps:
            left = (max_steps - last["step"]) * seconds / steps
            said.append(f"{duration(left)} left")
    return f"step {last['step']}/{max_steps}: {', '.join(said)}"


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _problems(rows: Sequence[Row]) -> list[str]:
    reward, flat = _mean(rows, "reward"), _mean(rows, "frac_reward_zero_std")
    cut = _mean(rows, "completions/clipped_ratio")
    said = [] if reward is None else [f"reward {reward:.2f}"]
    if flat is not None:
        said.append(f"{1 - flat:.0%} of groups with spread")
    if cut is not None:
        said.append(f"{cut:.0%} cut" if cut else "none cut")
    return said


def _pairs(rows: Sequence[Row]) -> list[str]:
    margin, right = _mean(rows, "rewards/margins"), _mean(rows, "rewards/accuracies")
    said = [] if margin is None else [f"margin {margin:.2f}"]
    if right is not None:
        said.append(f"{right:.0%} of pairs right")
    return said
