"""What this machine can run, found out in seconds and before it costs money.

Looks at the GPU and its driver, the installed versions, the disks, the hub and W&B, and says of
every file in configs/ whether it fits this machine, with an estimate of its peak memory. Loads
neither torch nor Unsloth, changes nothing, and shows no token.

    ./run doctor
    ./run doctor --memory
    ./run doctor --json

Exit code 0 if training can start here, 2 if something that it needs is broken.
"""

import argparse
import json
import signal
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from posttrain.base.paths import ROOT, run_command
from posttrain.base.process import run_main
from posttrain.base.terminal import prose_width
from posttrain.doctor import configs, installation, machine, services
from posttrain.doctor.finding import Finding
from posttrain.model import estimate


def main(argv: list[str] | None = None) -> int:
    """Look, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    help_text = "also what each estimate of peak memory is the sum of"
    parser.add_argument("--memory", action="store_true", help=help_text)
    help_text = "the folder that runs will be written to (default: outputs)"
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", help=help_text)
    asked = parser.parse_args(argv)
    sections, figures = look(asked.output)
    broken = any(f.status == "fail" for findings in sections.values() for f in findings)
    if asked.json:
        print(as_json(sections, figures, broken))
    else:
        print(as_text(sections, broken))
        if asked.memory:
            print(as_sums(figures))
    return 2 if broken else 0


def look(output: Path) -> tuple[dict[str, list[Finding]], list[dict[str, Any]]]:
    """All findings by section, and the configs' figures. What waits for others waits at once."""
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
    width, lines = prose_width(), []
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
        said = f"Usable. Configs that fit: {', '.join(fitting) or 'none'}."
        lines += textwrap.wrap(said, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def together(findings: list[Finding]) -> list[Finding]:
    """The findings, with those that say the same of three or more subjects in one of their own."""
    same = {
        f: [g.subject for g in findings if (g.text, g.advice) == (f.text, f.advice)]
        for f in findings
    }
    kept = [f for f in findings if len(same[f]) < 3]
    for finding, subjects in same.items():
        if len(subjects) >= 3 and finding.subject == subjects[0]:
            kept.append(
                replace(
                    finding,
                    subject=f"{len(subjects)} more",
                    details=(", ".join(Path(s).stem for s in subjects),),
                )
            )
    return kept


def as_sums(figures: list[dict[str, Any]]) -> str:
    """What each config's estimate of peak memory is the sum of."""
    width = prose_width()
    said = "peak GPU memory in GB, estimated: a sum over the model's shapes, not a measurement"
    lines = ["", *textwrap.wrap(said, width)]
    rows = [
        (f["config"], f.get("estimated_gb"), f.get("measured") or configs.NOT_MEASURED)
        for f in figures
    ]
    lines += estimate.table(rows)
    for said in (
        "peak = weights + adapter + merged + max(step, generation, scoring) + overhead",
        "step = gradients + kept + max(layer, logits)",
        "(each term is told in posttrain/model/estimate.py)",
    ):
        lines += textwrap.wrap(said, width, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def as_json(sections: dict[str, list[Finding]], figures: list[dict[str, Any]], broken: bool) -> str:
    """Everything that as_text shows; estimates and measurements under names that say which."""
    found = {name: [asdict(f) for f in findings] for name, findings in sections.items()}
    value = {"usable": not broken, **found, "memory": figures}
    return json.dumps(value, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    run_main(main)
