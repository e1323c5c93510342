"""Check in seconds what this machine can run, before it costs money.

Checks the GPU and its driver, the installed versions, the disks, the hub and W&B, and whether each
file of configs/ fits this machine, with an estimate of its peak memory. Loads neither torch nor
Unsloth, changes nothing, and shows no token.

    ./run doctor
    ./run doctor --memory
    ./run doctor --steps
    ./run doctor --json

Exit code 0 if training can start here, 2 if something that it needs is broken.
"""

import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base import flags, terminal
from posttrain.base.paths import ROOT
from posttrain.base.process import run_main
from posttrain.doctor import Finding, configs, installation, machine, services


def main(argv: list[str] | None = None) -> int:
    """Look, print, and return the exit code."""
    parser = flags.parser("doctor", __doc__)
    add = parser.add_argument
    add("--json", action="store_true", help="the same as JSON")
    add("--memory", action="store_true", help="also the terms of each estimate of peak memory")
    help_text = "also time products of the CPU configs' shapes, some ten seconds: seconds a step"
    add("--steps", action="store_true", help=help_text)
    help_text = "the folder that runs will be written to (default: outputs)"
    add("--output", type=Path, default=ROOT / "outputs", help=help_text)
    args = parser.parse_args(argv)
    sections, figures = look(args.output)
    if args.steps:
        sections["seconds a step on this CPU, estimated"] = configs.look_at_steps()
    broken = any(f.status == "fail" for findings in sections.values() for f in findings)
    if args.json:
        print(as_json(sections, figures, broken))
    else:
        print(as_text(sections, broken))
        if args.memory:
            print(as_sums(figures))
    return 2 if broken else 0


def look(output: Path) -> tuple[dict[str, list[Finding]], list[dict[str, Any]]]:
    """All findings by section, and the configs' figures. What waits is run in parallel."""
    with ThreadPoolExecutor() as pool:
        gpu_answer = pool.submit(machine.look_for_gpu)
        service_answer = pool.submit(services.look_at_services)
        installed = [*installation.look_at_versions(), *installation.look_at_disks(output)]
        gpu, about_gpu = gpu_answer.result()
        about_configs, figures = configs.look_at_configs(gpu)
        return {
            "machine": [*about_gpu, *machine.look_at_processor()],
            "installation": installed,
            "services": service_answer.result(),
            "configs": about_configs,
        }, figures


def as_text(sections: dict[str, list[Finding]], broken: bool) -> str:
    """Findings in aligned lines, what to do under each that needs it, and a verdict."""
    shown = {name: together(findings) for name, findings in sections.items()}
    subjects = max(len(f.subject) for findings in shown.values() for f in findings)
    indent = " " * (subjects + 10)
    width, lines = terminal.prose_width(), []
    for name, findings in shown.items():
        lines.append(name)
        for finding in findings:
            head = f"  {finding.status:<4}  {finding.subject:<{subjects}}  "
            advice = f"-> {finding.advice}" if finding.advice else ""
            for number, text in enumerate((finding.text, advice, *finding.details)):
                first = head if number == 0 else indent
                further = indent + ("   " if number else "")
                lines += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=further)
        lines.append("")
    fitting = [f.subject for f in sections["configs"] if f.status == "ok"]
    if broken:
        lines.append("Not usable yet: see the lines that say fail.")
    else:
        verdict = f"Usable. Configs that fit: {', '.join(fitting) or 'none'}."
        lines += textwrap.wrap(verdict, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def together(findings: list[Finding]) -> list[Finding]:
    """The findings, with three or more of the same text and advice as one."""
    same: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        same.setdefault((finding.text, finding.advice), []).append(finding)
    alone, groups = [], []
    for group in same.values():
        if len(group) < 3:
            alone += group
        else:
            names = ", ".join(Path(finding.subject).stem for finding in group)
            groups.append(replace(group[0], subject=f"{len(group)} more", details=(names,)))
    return alone + groups


def as_sums(figures: list[dict[str, Any]]) -> str:
    """The terms of each config's estimate of peak memory."""
    entry = partial(terminal.entry, "", label_width=2)
    title = "peak GPU memory in GB, estimated from the model's shapes, not measured"
    lines = ["", *textwrap.wrap(title, terminal.prose_width())]
    for config in figures:
        terms = config.get("estimated_gb") or {}
        values = ", ".join(f"{name} {size:.2f}" for name, size in terms.items())
        lines += [f"  {config['config']}", entry(values or "no estimate")]
    lines += [
        entry("peak = weights + adapter + merged + max(step, generation, scoring) + overhead"),
        entry("step = gradients + kept + max(layer, logits)"),
        entry("(posttrain/model/estimate.py describes each term)"),
    ]
    return "\n".join(lines)


def as_json(sections: dict[str, list[Finding]], figures: list[dict[str, Any]], broken: bool) -> str:
    """Everything that as_text shows; estimates and measurements under names that say which."""
    by_section = {name: [asdict(f) for f in findings] for name, findings in sections.items()}
    value = {"usable": not broken, **by_section, "memory": figures}
    return json.dumps(value, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    run_main(main)
