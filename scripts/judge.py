"""Have a language model compare the replies of a DPO run before and after training.

    ./run judge outputs/dpo_french_16gb --url http://127.0.0.1:8000 --model MODEL
    MY_KEY=... ./run judge outputs/dpo_demo --url https://HOST --model MODEL --key-variable MY_KEY

Any OpenAI-compatible endpoint will do. Each prompt is judged twice, with the replies swapped: a
reply wins only if it is preferred in both orders, and verdicts that disagree are a tie. Verdicts
are kept as they come in RUN/judge/MODEL/verdicts.jsonl, so the same command goes on after a stop.
The key is read from the environment and written nowhere.
"""

import argparse
import os
import re
import signal
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from eval import figures
from eval.judge import INSTRUCTIONS, ORDERS, Verdicts, summarise
from eval.stats import Measure
from posttrain.base.disk import check_folder
from posttrain.base.errors import ConfigError
from posttrain.base.files import fingerprint, write_json
from posttrain.base.paths import is_url, run_command
from posttrain.base.process import run_main
from posttrain.base.terminal import entry, prose_width
from posttrain.model.server import KEY_VARIABLE, asker
from posttrain.run.replies import check_request, claim, folder_for
from posttrain.scoring.verdicts import (
    VERDICTS,
    ask_all,
    missing,
    read_comparisons,
    read_verdicts,
)
from posttrain.settings import Evaluation

UNREADABLE = 0.05  # share of verdicts above which the user is warned


def main(argv: list[str] | None = None) -> int:
    """Ask for what is missing, then report; returns the exit code."""
    asked = parse(argv)
    compared = read_comparisons(asked.run)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", asked.model).strip("-.")
    request = {
        "model": asked.model,
        "language": asked.language,
        "instructions": INSTRUCTIONS[asked.language],
        "temperature": asked.temperature,
        "max_tokens": asked.max_tokens,
        "seed": asked.seed,
        "replies": fingerprint(compared),
    }
    compared = compared[: asked.limit]
    folder = asked.output or folder_for(asked.run / "judge" / slug, request)
    check_folder(folder)
    check_request(folder, request)
    path = folder / VERDICTS
    given = read_verdicts(path)
    left = len(missing(compared, given))
    print(
        f"{len(compared)} prompts, {len(given)} verdicts kept from an earlier call, {left} to ask"
    )
    if left:
        evaluation = Evaluation(temperature=asked.temperature, max_new_tokens=asked.max_tokens)
        ask = asker(asked.url, evaluation, asked.model, asked.key_variable, asked.timeout)
        ask_all(compared, given, ask, folder, request, asked.at_once)
    claim(folder, request)  # with nothing to ask there is no folder yet
    by_comparison = [
        {order: given.get((place, order)) for order in ORDERS} for place in range(len(compared))
    ]
    found = summarise(compared, by_comparison)
    write_json(folder / "report.json", {"url": asked.url, **request, **asdict(found)})
    print(f"\n{render(asked.model, found)}\n\nVerdicts and report: {folder}")
    if found.unparsable_verdicts > UNREADABLE * found.verdicts:
        print(
            f"warning: over {UNREADABLE:.0%} of the verdicts cannot be read (see {path.name}); a "
            "judge that reasons at length needs a larger --max-tokens"
        )
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished DPO run")
    add("--url", required=True, help="an OpenAI-compatible endpoint, with or without /v1")
    add("--model", required=True, help="the judge, as the endpoint calls it")
    add("--language", choices=sorted(INSTRUCTIONS), default="fr", help="of the judge's task")
    add("--limit", type=int, help="only the first prompts")
    add("--key-variable", default=KEY_VARIABLE, metavar="NAME", help="variable that holds the key")
    add("--at-once", type=int, default=8, help="requests side by side")
    add("--timeout", type=float, default=120.0, help="seconds to wait for an answer, each try")
    add("--temperature", type=float, default=0.0)
    add("--max-tokens", type=int, default=512, help="of the judge's reason and verdict")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="folder (default: RUN/judge/MODEL)")
    asked = parser.parse_args(argv)
    for name in ("limit", "at_once", "max_tokens"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name, least in (("timeout", "above 0"), ("temperature", "0 or more")):
        value = getattr(asked, name)
        if not 0 <= value < float("inf") or (name == "timeout" and value == 0):
            parser.error(f"--{name} must be {least}, got {value}")
    if not is_url(asked.url):
        parser.error(f"--url must start with http:// or https://, got {asked.url!r}")
    if "@" in asked.url or "?" in asked.url:  # the URL is written to the record
        parser.error(
            "--url must hold no password and no parameters: a key is read from --key-variable"
        )
    if asked.key_variable != KEY_VARIABLE and not os.environ.get(asked.key_variable):
        raise ConfigError(f"--key-variable: the environment has no {asked.key_variable}")
    return asked


def render(judge: str, found: Verdicts) -> str:
    """The report for the terminal."""
    rows = [
        ("win rate of after", _interval(found.win_rate, f"p = {found.p_value:.2g}, ")),
        ("wins, ties, losses", f"{found.wins}, {found.ties}, {found.losses}"),
        ("same in both orders", _interval(found.consistency)),
        ("first reply preferred", _interval(found.first_is_preferred)),
        ("identical replies", f"{found.identical_replies} (ties, not judged)"),
        (
            "unreadable verdicts",
            f"{found.unparsable_verdicts} of {found.verdicts} ({found.left_out} prompts left out)",
        ),
    ]
    head = f"Judge {judge} on {found.comparisons} prompts (95% intervals)"
    head = textwrap.fill(head, prose_width(), subsequent_indent="  ")
    return "\n".join([head, *(entry(label, value) for label, value in rows)])


def _interval(measure: Measure, before_n: str = "") -> str:
    share = figures.value("win_rate", measure)
    return share if measure.value is None else f"{share} ({before_n}n = {measure.n})"


if __name__ == "__main__":
    run_main(main)
