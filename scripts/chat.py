"""Ask a model something, and the model that it was trained from the same.

    ./run chat outputs/grpo_demo                           # base and tuned, of one set of weights
    ./run chat outputs/grpo_demo --web                     # the same in a browser, on this machine
    ./run chat outputs/dpo_demo --question "Combien ?"
    ./run chat outputs/grpo_demo < questions.txt           # a line is a question of its own
    ./run chat Qwen/Qwen2.5-0.5B-Instruct                  # or a folder, a GGUF file, a URL

`before` is the base model, the adapter off; `after` is with it. Replies are greedy unless
--temperature is given, under the run's own system prompt, worked examples, chat template variables
and limit. Those to questions of a GRPO run's data are shown with their rewards. In a terminal /help
lists the commands, and Ctrl-C stops a reply.
"""

import argparse
import contextlib
import math
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from posttrain.base.paths import run_command
from posttrain.base.process import Terminated, run_main
from posttrain.chat import models, source, terminal
from posttrain.chat.conversation import Talk
from posttrain.chat.known import held_out_questions, load_known
from posttrain.chat.port import check_port
from posttrain.settings import Prompt
from posttrain.settings.command import check_settings
from posttrain.settings.secrets import check_arguments

EXAMPLES = 6  # questions that the page offers


def main(argv: list[str] | None = None) -> int:
    """Answer what is asked; returns the exit code."""
    asked = parse(argv)
    found = source.find(asked.model)
    if asked.web:
        check_port(asked.port)
    prompt = found.prompt
    system = prompt.system if asked.system is None else asked.system or None
    examples = prompt.examples
    if asked.examples is not None:
        examples = check_settings(Prompt, {"examples": asked.examples or []}, "--examples").examples
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the replies
            sides = models.load(found, models.evaluation(found, asked), stack)
            known = load_known(found)
        talk = Talk(sides, system, asked.seed, known, examples)
        try:
            answer(talk, found, asked)
        except Terminated:
            raise
        except KeyboardInterrupt:
            print()
            return 130
    return 0


def answer(talk: Talk, found: source.Source, asked: argparse.Namespace) -> None:
    """Answer in the browser, once, line by line or in turns, whichever was asked for."""
    if asked.web:
        from posttrain.chat import web  # takes seconds

        examples = held_out_questions(found, EXAMPLES)
        web.serve(talk, title(found), examples, asked.port, asked.share)
    elif asked.question is not None:
        terminal.answer_once(talk, asked.question.strip())
    elif not sys.stdin.isatty():
        terminal.answer_lines(talk, sys.stdin.buffer)
    else:
        print(models.greeting(talk))
        terminal.converse(talk)


def title(found: source.Source) -> str:
    """The name of the run, else of the model."""
    return found.folder.name if found.folder else found.model.rstrip("/").split("/")[-1]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"{run_command()} chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="RUN|MODEL",
        help="run folder, adapter or checkpoint folder, model folder or hub name, GGUF file (run "
        "by llama.cpp), or URL of an OpenAI-style server (its key in OPENAI_API_KEY)",
    )
    add("--question", metavar="TEXT", help="answer this and end")
    add("--system", metavar="TEXT", help="another system prompt ('' for none)")
    add("--examples", metavar="FILE", help="other worked examples, in JSON lines ('' for none)")
    add("--temperature", type=float, default=0.0, help="0 (the default) is greedy")
    add("--max-new-tokens", type=int, help="longest reply (default: the run's, else 512)")
    add("--seed", type=int, default=0, help="of sampled replies")
    add("--web", action="store_true", help="in the browser, on this machine alone")
    add("--port", type=int, default=7860, help="of --web (default: 7860)")
    add(
        "--share",
        action="store_true",
        help="--web through a public link of gradio.live, for Colab: whoever has it can ask",
    )
    check_arguments(sys.argv[1:] if argv is None else argv)
    asked = parser.parse_args(argv)
    if not 0 <= asked.temperature < math.inf:
        parser.error(f"--temperature must be 0 or more, got {asked.temperature}")
    if asked.max_new_tokens is not None and asked.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be at least 1, got {asked.max_new_tokens}")
    if asked.question is not None and (asked.web or not asked.question.strip()):
        parser.error("--question needs a text, and answers in the terminal, without --web")
    if asked.question is not None and not terminal.is_text(asked.question):
        parser.error("--question is not UTF-8")
    if asked.share and not asked.web:
        parser.error("--share needs --web")
    return asked


if __name__ == "__main__":
    run_main(main)
