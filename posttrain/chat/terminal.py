"""The chat in a terminal, and the answers to questions that come from a pipe."""

import sys
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from eval import Completion
from posttrain.base.errors import DataError, PostTrainError, did_you_mean
from posttrain.base.files import append_rows
from posttrain.base.process import Terminated
from posttrain.chat.conversation import Side, Talk

PROMPT = "> "
HELP = """\
/reset          forget the conversation
/system [TEXT]  another system prompt, and a new conversation; "-" for none; alone: show it
/save FILE      write the conversation as JSON lines, one a question
/quit           leave, as Ctrl-D does
Ctrl-C stops a reply; where nothing is being written it leaves."""


def answer_lines(talk: Talk, lines: Iterable[bytes]) -> None:
    """Answer each line as a question of its own, also after one that could not be answered.

    Raises:
        DataError: a line is not UTF-8.
        PostTrainError: in the end, what was wrong with the last one that could not be answered.
    """
    failed: PostTrainError | None = None
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
                failed = error
    if failed:
        raise failed


def answer_once(talk: Talk, question: str) -> None:
    """Print a question and the replies to it, with the side's name before every line of them."""
    print(f"{PROMPT}{question}")
    talk.turns.clear()
    talk.ask(question)
    for side in talk.sides:
        _Printed(talk, side, every_line=True).reply()
    print()


def converse(talk: Talk) -> None:
    """Answer what is typed, turn by turn, until the user leaves; Ctrl-C does so where nothing is
    being written."""
    import readline  # noqa: F401  it gives input() its editing of lines

    commands: dict[str, Callable[[str], None]] = {
        "/help": lambda _: print(HELP),
        "/reset": lambda _: _reset(talk),
        "/system": lambda text: _system(talk, text),
        "/save": lambda name: _save(talk, name),
    }
    while True:
        try:
            typed = input(PROMPT).strip()
        except EOFError:
            print()
            return
        if not is_text(typed):
            print("That holds half a character. Type it again; LC_ALL=C.UTF-8 mends the editing.")
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
            except Terminated:
                raise
            except KeyboardInterrupt:  # between two replies: it stops what is left of them
                print()


def _answer(talk: Talk, question: str) -> None:
    """Print the replies; each Ctrl-C stops one of them."""
    talk.ask(question)
    for side in talk.sides:
        printed = _Printed(talk, side, every_line=False)
        try:
            printed.reply()
        except Terminated:
            raise
        except KeyboardInterrupt:
            printed.note("stopped")
            print()
        except PostTrainError as error:
            printed.note(f"error: {error}")
            print()
    print()


class _Printed:
    """A reply on its way to standard output, with the side's name before it."""

    def __init__(self, talk: Talk, side: Side, every_line: bool) -> None:
        self._talk, self._side = talk, side
        self._label = f"{side.name:<{max(len(other.name) for other in talk.sides)}}  "
        self._next = self._label if every_line else " " * len(self._label)

    def reply(self) -> None:
        """Print the reply as it comes, then what there is to say of it."""
        shown, reply = "", Completion("", 0, truncated=True)
        print(self._label, end="", flush=True)
        with closing(self._talk.answer(self._side)) as replies:
            for reply in replies:
                text = visible(reply.text).rstrip()  # an end of lines may yet be followed by more
                print(text[len(shown) :].replace("\n", f"\n{self._next}"), end="", flush=True)
                shown = text
        if reply.truncated:
            self.note(f"cut after {reply.tokens} tokens: --max-new-tokens, or the context is full")
        gold = self._talk.known.gold(self._talk.rows[-1]["question"])
        try:
            if earned := self._talk.rewards(self._side, reply):
                self.note(f"{rewards_line(earned)}; right answer: {gold}")
        except PostTrainError as error:
            self.note(f"no rewards: {error}")
        print()

    def note(self, text: str) -> None:
        """A line below the reply that is not the model's, and so without the side's name."""
        print(f"\n{' ' * len(self._label)}[{text}]", end="", flush=True)


def is_text(typed: str) -> bool:
    """Whether what was typed is whole characters: Python hands on a byte that is none as half of a
    surrogate pair."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        return False
    return True


def rewards_line(earned: dict[str, float | None]) -> str:
    """`format 1, correctness 2, total 3`."""
    return ", ".join(f"{n} {'none' if v is None else f'{v:g}'}" for n, v in earned.items())


def visible(text: str) -> str:
    """A model's text without the control characters that a terminal would obey."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _reset(talk: Talk) -> None:
    talk.reset(talk.system)
    print("A new conversation.")


def _system(talk: Talk, text: str) -> None:
    if text:
        talk.reset(None if text == "-" else text)
        print("A new conversation, with", end=" ")
    print(f"the system prompt: {talk.system}" if talk.system else "no system prompt.")


def _save(talk: Talk, name: str) -> None:
    path = Path(name).expanduser()
    if not name or not talk.rows:
        print("/save FILE: name a file" if not name else "Nothing was asked yet.")
    elif path.exists():
        print(f"There is a {path} already; give another name.")
    else:
        try:
            append_rows(path, talk.rows)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)
        else:
            print(f"Saved {len(talk.rows)} questions and their replies in {path}")
