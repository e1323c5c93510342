"""Have a language model compare the replies of a DPO run before and after training.

    ./run judge outputs/dpo_french_16gb --url http://127.0.0.1:8000 --model MODEL
    MY_KEY=... ./run judge outputs/dpo_demo --url https://HOST --model MODEL --key-variable MY_KEY

Any OpenAI-compatible endpoint will do. Each prompt is judged twice, with the replies swapped: a
reply wins only if it is preferred in both orders, and verdicts that disagree are a tie. Verdicts
are kept as they come in RUN/judge/MODEL/verdicts.jsonl, so the same command resumes after a stop.
The key is read from the environment and written nowhere.
"""

import argparse
import os
import re
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval import figures
from eval.judge import INSTRUCTIONS, ORDERS, Verdicts, summarise
from eval.stats import Measure
from posttrain.base import flags
from posttrain.base.errors import ConfigError
from posttrain.base.files import fingerprint, write_json
from posttrain.base.lock import locked
from posttrain.base.paths import is_url
from posttrain.base.process import run_main
from posttrain.base.terminal import entry, prose_width
from posttrain.model.server import KEY_VARIABLE, Server
from posttrain.run.replies import check_request, claim, folder_for
from posttrain.scoring.verdicts import VERDICTS, judge_all, missing, read_comparisons, read_verdicts

UNREADABLE = 0.05  # share of verdicts above which the user is warned


def main(argv: list[str] | None = None) -> int:
    """Request what is missing, then report; returns the exit code."""
    args = parse(argv)
    comparisons = read_comparisons(args.run)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", args.model).strip("-.")
    request = {
        "model": args.model,
        "language": args.language,
        "instructions": INSTRUCTIONS[args.language],
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "replies": fingerprint(comparisons),
    }
    comparisons = comparisons[: args.limit]
    folder = args.output or folder_for(args.run / "judge" / slug, request)
    with locked(folder, "another judge is writing there"):
        check_request(folder, request)
        path = folder / VERDICTS
        verdicts = read_verdicts(path)
        left = len(missing(comparisons, verdicts))
        print(
            f"{len(comparisons)} prompts, {len(verdicts)} verdicts kept from an earlier call, "
            f"{left} to request"
        )
        if left:
            sent = {"max_tokens": args.max_tokens, "temperature": args.temperature}
            server = Server(args.url, sent, args.model, args.key_variable, args.timeout)
            judge_all(comparisons, verdicts, server.ask, folder, request, args.at_once)
        claim(folder, request)  # without a request there is no folder yet
        of_each = [{o: verdicts.get((i, o)) for o in ORDERS} for i in range(len(comparisons))]
        result = summarise(comparisons, of_each)
        write_json(folder / "report.json", {"url": args.url, **request, **asdict(result)})
    print(f"\n{render(args.model, result)}\n\nVerdicts and report: {folder}")
    if result.unparsable_verdicts > UNREADABLE * result.verdicts:
        print(
            f"warning: over {UNREADABLE:.0%} of the verdicts cannot be read (see {path.name}); a "
            "judge that reasons at length needs a larger --max-tokens"
        )
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = flags.parser("judge", __doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a finished DPO run")
    add("--url", required=True, help="an OpenAI-compatible endpoint, with or without /v1")
    add("--model", required=True, help="the judge, as the endpoint calls it")
    add("--language", choices=sorted(INSTRUCTIONS), default="fr", help="of the judge's task")
    add("--limit", type=flags.count, help="only the first prompts")
    add("--key-variable", default=KEY_VARIABLE, metavar="NAME", help="variable that holds the key")
    add("--at-once", type=flags.count, default=8, help="concurrent requests")
    add("--timeout", type=flags.positive, default=120.0, help="seconds to wait, each try")
    add("--temperature", type=flags.not_negative, default=0.0)
    add("--max-tokens", type=flags.count, default=512, help="of the judge's reason and verdict")
    add("--seed", type=flags.seed, default=0)
    add("--output", type=Path, help="folder (default: RUN/judge/MODEL)")
    args = parser.parse_args(argv)
    if not is_url(args.url):
        parser.error(f"--url must start with http:// or https://, got {args.url!r}")
    if "@" in args.url or "?" in args.url:  # the URL is written to the record
        parser.error(
            "--url must hold no password and no parameters: a key is read from --key-variable"
        )
    if args.key_variable != KEY_VARIABLE and not os.environ.get(args.key_variable):
        raise ConfigError(f"--key-variable: the environment has no {args.key_variable}")
    return args


def render(judge: str, result: Verdicts) -> str:
    """The report for the terminal."""
    rows = [
        ("win rate of after", _interval(result.win_rate, f"p = {result.p_value:.2g}, ")),
        ("wins, ties, losses", f"{result.wins}, {result.ties}, {result.losses}"),
        ("same in both orders", _interval(result.consistency)),
        ("first reply preferred", _interval(result.first_is_preferred)),
        ("identical replies", f"{result.identical_replies} (ties, not judged)"),
        (
            "unreadable verdicts",
            f"{result.unparsable_verdicts} of {result.verdicts} "
            f"({result.left_out} prompts left out)",
        ),
    ]
    head = f"Judge {judge} on {result.comparisons} prompts (95% intervals)"
    head = textwrap.fill(head, prose_width(), subsequent_indent="  ")
    return "\n".join([head, *(entry(label, value) for label, value in rows)])


def _interval(measure: Measure, before_n: str = "") -> str:
    share = figures.value("win_rate", measure)
    return share if measure.value is None else f"{share} ({before_n}n = {measure.n})"


if __name__ == "__main__":
    run_main(main)
