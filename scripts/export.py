"""Turn an adapter into files that run elsewhere, and prove that they behave like it.

    ./run export outputs/grpo_gsm8k_16gb --to merged_16bit,gguf:q8_0,gguf:q4_k_m,ollama
    ./run export outputs/grpo_gsm8k_16gb --to merged_16bit,gguf:q4_k_m --score
    ./run export path/to/adapter --base Qwen/Qwen2.5-0.5B-Instruct --to merged_16bit

The adapter is merged into the 16-bit base weights, in float32, rounded once. Every file is
compared with the adapter (GGUF: run by llama.cpp). What was found is in export.json; a file that
does not pass is kept, marked as unproven, and ends the command with code 4. What is proven already
is left as it is. GGUF needs llama.cpp's converter, which is fetched once; q4_k_m also needs a C++
compiler, and minutes to build llama-quantize, once.

--score answers the run's held-out questions with every file and compares the answers with the
adapter's own, one by one: what is lost by going home with that file. It goes on where it was
stopped.
"""

import argparse
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from posttrain.base.errors import ConfigError
from posttrain.base.paths import run_command
from posttrain.base.process import run_main, share_the_processor
from posttrain.export import score, session, source
from posttrain.export.hub import push
from posttrain.report.redraw import redraw
from posttrain.run.room import MERGED, in_order
from posttrain.settings.command import check_settings
from posttrain.settings.export import ExportSettings
from posttrain.settings.help import listed


def main(argv: list[str] | None = None) -> int:
    """Export what was asked for; returns the exit code."""
    asked = parse(argv)
    share_the_processor()
    trained = source.find(asked.run, asked.output)
    given = {
        "to": asked.to.split(",") if asked.to else None,
        "base": asked.base,
        "dtype": asked.dtype,
        "llama_cpp": asked.llama_cpp,
        "score": asked.score or None,
    }
    section = trained.run.get("export", {}) | {k: v for k, v in given.items() if v is not None}
    settings = check_settings(ExportSettings, {"export": section}, str(asked.run), asked.overrides)
    if asked.push and not (trained.output / "config.yaml").is_file():
        raise ConfigError(f"--push: {trained.output} is no run folder, so there is no model card")
    to = settings.export.to
    if settings.export.score:
        score.check(trained.output)
    try:
        code = 0 if asked.push and not to else session.export(trained, settings.export)
    finally:  # a target that failed leaves those before it made and recorded
        if (trained.output / "config.yaml").exists():
            redraw(trained.output)
    if asked.push and code == 0:
        # A Modelfile is of no use without its GGUF; merged weights may be no more than a step.
        files = [target for target in in_order(to) if target in to or target != MERGED]
        print(f"Uploaded to {push(trained.output, asked.push, files, private=not asked.public)}")
    return code


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings (also the `export` section of a run's YAML):\n" + listed(ExportSettings),
    )
    parser.add_argument("run", type=Path, help="run folder or adapter folder")
    parser.add_argument("--to", metavar="TARGET,...", help="default: export.to of the run")
    parser.add_argument("--base", help="16-bit base model (default: the one that was trained on)")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16"])
    parser.add_argument("--llama-cpp", metavar="PATH", help="llama.cpp tree or source archive")
    parser.add_argument(
        "--score",
        action="store_true",
        help="answer the run's held-out rows with every file, compared with the adapter's answers",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the proven exports to the hub, or the adapter where none is named",
    )
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    parser.add_argument("--output", type=Path, help="folder (default: the run folder)")
    parser.add_argument("overrides", nargs="*", metavar="export.key=value")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_main(main)
