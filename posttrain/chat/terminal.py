"""The chat in a terminal, and answers to questions from a pipe."""

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from eval import Completion
from posttrain.base.errors import DataError, PostTrainError, did_you_mean
from posttrain.base.files import append_rows
from posttrain.chat.conversation import Side, Talk, not_utf8

PROMPT = "> "
HELP = """\
/reset          forget the conversation
/system [TEXT]  another system prompt, and a new conversation; "-" for none; alone: show it
/save FILE      write the conversation as JSON lines, one per question
/quit           leave, as Ctrl-D does
Ctrl-C stops a reply, and leaves where no reply is being written."""


def answer_lines(talk: Talk, lines: Iterable[bytes]) -> None:
    """Answer each line as a separate question, also after one that could not be answered. Raises
    DataError if a line is not UTF-8, and at the end the PostTrainError of the last question that
    was not answered."""
    failure: PostTrainError | None = None
    for number, line in enumerate(lines, start=1):
        try:
            question = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(
                f"line {number} of standard input is not UTF-8; convert it: iconv -t UTF-8"
            ) from None
        if question:
            try:
                answer_once(talk, question)
            except PostTrainError as error:
                print(f"\n[{error}]\n")
                failure = error
    if failure:
        raise failure


def answer_once(talk: Talk, question: str) -> None:
    """Print a question and the replies to it, with the side's name before each of their lines;
    raises PostTrainError if it cannot be answered."""
    talk.turns.clear()
    talk.ask(question)
    print(f"{PROMPT}{question}")
    for side in talk.sides:
        _reply(talk, side, every_line=True)
    print()


def converse(talk: Talk) -> None:
    """Answer what is typed, turn by turn, until the user leaves."""
    import readline  # noqa: F401  gives input() line editing

    for side in talk.sides:
        print(_label(talk, side.name) + side.about)
    print(f"System prompt: {talk.system}" if talk.system else "No system prompt.")
    print("/help lists the commands; Ctrl-C stops a reply.\n")
    commands: dict[str, Callable[[str], None]] = {
        "/help": lambda _: print(HELP),
        "/reset": lambda _: _system(talk, talk.system or "-"),
        "/system": lambda text: _system(talk, text),
        "/save": lambda name: _save(talk, name),
    }
    while True:
        try:
            typed = input(PROMPT).strip()
        except EOFError:
            print()
            return
        if problem := not_utf8(typed):
            print(f"error: {problem}")
            continue
        command, _, rest = typed.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command in commands:
            commands[command](rest.strip())
        elif command.startswith("/"):
            print(f"There is no command {command}.{did_you_mean(command, [*commands, '/quit'])}")
        elif typed:
            try:
                _answer(talk, typed)
            except KeyboardInterrupt:  # between two replies: it stops the rest of them
                print()


def _answer(talk: Talk, question: str) -> None:
    """Print the replies; each Ctrl-C stops one of them."""
    talk.ask(question)
    for side in talk.sides:
        try:
            _reply(talk, side, every_line=False)
        except KeyboardInterrupt:
            _note(talk, "stopped")
        except PostTrainError as error:
            _note(talk, f"error: {error}")
    print()


def _reply(talk: Talk, side: Side, every_line: bool) -> None:
    """Print a side's reply as it grows, after its name, then notes on it."""
    label = _label(talk, side.name)
    next_line = "\n" + (label if every_line else _label(talk))
    shown, reply = "", Completion("", 0, truncated=True)
    print(label, end="", flush=True)
    with closing(talk.answer(side)) as replies:
        for reply in replies:
            text = visible(reply.text).rstrip()  # more text may follow a line's end
            print(text[len(shown) :].replace("\n", next_line), end="", flush=True)
            shown = text
    if notes := talk.notes(side, reply):
        _note(talk, ", ".join(text for text, _ in notes))
    else:
        print()


def _note(talk: Talk, text: str) -> None:
    """A line below the reply that is not the model's, and so without the side's name."""
    print(f"\n{_label(talk)}[{text}]", flush=True)


def _label(talk: Talk, name: str = "") -> str:
    width = max(len(side.name) for side in talk.sides)
    return f"{name:<{width}}  "


def visible(text: str) -> str:
    """A model's text without the control characters that a terminal would obey."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _system(talk: Talk, text: str) -> None:
    if text:
        talk.reset(None if text == "-" else text)
        print("A new conversation, with", end=" ")
    print(f"the system prompt: {talk.system}" if talk.system else "no system prompt.")


def _save(talk: Talk, name: str) -> None:
    path = Path(os.path.expanduser(name))
    if not name or not talk.rows:
        print("/save FILE: name a file" if not name else "There is no question to save yet.")
    elif os.path.exists(path):
        print(f"{path} exists already; give another name.")
    else:
        try:
            append_rows(path, talk.rows)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
        else:
            print(f"Saved {len(talk.rows)} questions and their replies in {path}")
