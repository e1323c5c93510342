"""Export an adapter to files that run elsewhere, and prove that they behave like it.

    ./run export outputs/grpo_gsm8k_16gb --to merged_16bit,gguf:q8_0,gguf:q4_k_m,ollama
    ./run export outputs/grpo_gsm8k_16gb --to merged_16bit,gguf:q4_k_m --score
    ./run export path/to/adapter --base Qwen/Qwen2.5-0.5B-Instruct --to merged_16bit

The adapter is merged into the 16-bit base weights, in float32, rounded once. Every file is
compared with the adapter (GGUF: run by llama.cpp), and the results are written to export.json. A
file that fails is kept, marked as unproven, and the command ends with code 4. Proven files are not
made again. GGUF needs llama.cpp's converter, which is downloaded once; q4_k_m also needs a C++
compiler, and minutes to build llama-quantize, once.

--score answers the run's held-out questions with every file and compares the answers with the
adapter's, one by one, which measures what the file loses. A stopped call resumes.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base import flags
from posttrain.base.errors import ConfigError
from posttrain.base.process import run_main, share_the_processor
from posttrain.export import score, session, source
from posttrain.export.hub import push
from posttrain.report.redraw import redraw
from posttrain.run.room import MERGED, in_order
from posttrain.settings.command import check_settings
from posttrain.settings.export import Export, ExportSettings
from posttrain.settings.help import listed


def main(argv: list[str] | None = None) -> int:
    """Export the requested targets; returns the exit code."""
    args = parse(argv)
    share_the_processor()
    trained = source.find(args.run, args.output)
    section = dict(trained.run.get("export", {}))
    section |= {k: v for k, v in vars(args).items() if k in Export.model_fields and v}
    settings = check_settings(ExportSettings, {"export": section}, str(args.run), args.overrides)
    is_run = (trained.output / "config.yaml").is_file()
    if args.push and not is_run:
        raise ConfigError(f"--push: {trained.output} is not a run folder: there is no model card")
    to = settings.export.to
    if settings.export.score:
        score.check(trained.output)
    try:
        code = 0 if args.push and not to else session.export(trained, settings.export)
    finally:  # if a target fails, those before it are made and recorded
        if is_run:
            redraw(trained.output)
    if args.push and code == 0:
        # Merged weights may only be a step towards a GGUF; a Modelfile needs its GGUF.
        files = [target for target in in_order(to) if target in to or target != MERGED]
        print(f"Uploaded to {push(trained.output, args.push, files, private=not args.public)}")
    return code


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser("export", __doc__)
    settings = listed(ExportSettings)
    parser.epilog = f"settings (also the `export` section of a run's YAML):\n{settings}"
    add = parser.add_argument
    add("run", type=Path, help="run folder or adapter folder")
    add("--to", metavar="TARGET,...", help="default: export.to of the run")
    add("--base", help="16-bit base model (default: that of the training)")
    add("--dtype", choices=["auto", "bfloat16", "float16"])
    add("--llama-cpp", metavar="PATH", help="llama.cpp tree or source archive")
    help_text = "answer the run's held-out rows with every file, and compare with the adapter's"
    add("--score", action="store_true", help=help_text)
    help_text = "upload the proven exports to the hub, or the adapter if none is named"
    add("--push", metavar="OWNER/NAME", help=help_text)
    add("--public", action="store_true", help="make a new repository public")
    add("--output", type=Path, help="folder (default: the run folder)")
    add("overrides", nargs="*", metavar="export.key=value")
    args = parser.parse_intermixed_args(argv)
    args.to = args.to.split(",") if args.to else None
    return args


if __name__ == "__main__":
    run_main(main)
