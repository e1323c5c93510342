"""Talk to a trained model, and to the model that it was trained from.

    ./run chat outputs/grpo_demo                           # base and tuned, with one set of weights
    ./run chat outputs/grpo_demo --web                     # the same in a browser, on this machine
    ./run chat outputs/dpo_demo --question "Combien ?"
    ./run chat outputs/grpo_demo < questions.txt           # each line is a separate question
    ./run chat Qwen/Qwen2.5-0.5B-Instruct                  # or a folder, a GGUF file, a URL

`before` is the base model, with the adapter off; `after` has it on. Replies are greedy unless
--temperature is given, with the run's system prompt, worked examples, chat template variables and
length limit. Replies to questions of a GRPO run's data are shown with their rewards. In a terminal
/help lists the commands, and Ctrl-C stops a reply.
"""

import argparse
import contextlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from posttrain.base import flags
from posttrain.base.process import run_main
from posttrain.chat import models, source, terminal
from posttrain.chat.conversation import Talk, held_out_questions, load_known, not_utf8
from posttrain.settings import Prompt
from posttrain.settings.command import check_settings
from posttrain.settings.secrets import check_arguments

EXAMPLES = 6  # questions that the page offers


def main(argv: list[str] | None = None) -> int:
    """Answer questions in the browser, once, line by line or in turns; returns the exit code."""
    args = parse(argv)
    model = source.find(args.model)
    if args.web:
        models.check_port(args.port)
    prompt = model.prompt
    system = prompt.system if args.system is None else args.system or None
    examples = prompt.examples
    if args.examples is not None:
        examples = check_settings(Prompt, {"examples": args.examples or []}, "--examples").examples
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the replies
            evaluation = models.evaluation(model, args)
            sides = models.load(model, evaluation, stack)
            known = load_known(model)
        talk = Talk(sides, system, args.seed, known, examples, evaluation.stop_at_answer)
        try:
            if args.web:
                from posttrain.chat import web  # takes seconds

                title = model.folder.name if model.folder else Path(model.model).name
                web.serve(talk, title, held_out_questions(model, EXAMPLES), args.port, args.share)
            elif args.question is not None:
                terminal.answer_once(talk, args.question.strip())
            elif not sys.stdin.isatty():
                terminal.answer_lines(talk, sys.stdin.buffer)
            else:
                terminal.converse(talk)
        except KeyboardInterrupt:
            print()
            return 130
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = flags.parser("chat", __doc__)
    add = parser.add_argument
    add(
        "model",
        metavar="RUN|MODEL",
        help="run folder, adapter or checkpoint folder, model folder or hub name, GGUF file (run "
        "by llama.cpp), or URL of an OpenAI-style server (its key in OPENAI_API_KEY)",
    )
    add("--question", metavar="TEXT", help="answer this and exit")
    add("--system", metavar="TEXT", help="another system prompt ('' for none)")
    add("--examples", metavar="FILE", help="other worked examples, in JSON lines ('' for none)")
    add("--temperature", type=flags.not_negative, default=0.0, help="0 (the default) is greedy")
    add("--max-new-tokens", type=flags.count, help="longest reply (default: the run's, else 512)")
    add("--seed", type=flags.seed, default=0, help="of sampled replies")
    add("--web", action="store_true", help="in the browser, on this machine alone")
    add("--port", type=flags.count, default=7860, help="of --web (default: 7860)")
    share = "--web through a public link of gradio.live, for Colab: anyone with it can ask"
    add("--share", action="store_true", help=share)
    check_arguments(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    if args.question is not None:
        if args.web or not args.question.strip():
            parser.error("--question needs a text, and answers in the terminal, without --web")
        if problem := not_utf8(args.question):
            parser.error(f"--question: {problem}")
    if args.share and not args.web:
        parser.error("--share needs --web")
    return args


if __name__ == "__main__":
    run_main(main)
