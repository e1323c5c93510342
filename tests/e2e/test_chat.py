"""The chat with real weights: its replies, a pipe, a terminal, llama.cpp, a page in Chromium."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from eval import PromptFormat, conversation
from posttrain.base.errors import ConfigError
from posttrain.chat import source
from posttrain.chat.conversation import Side, Talk, load_known
from posttrain.chat.models import Weights, text_so_far
from posttrain.export import gguf
from posttrain.model import adapter, inference, pretrained
from posttrain.model.llama_server import serve
from posttrain.settings import Evaluation
from tests.helpers import DEMO_DATA, DEMO_MODEL, ROOT, make_adapter, rows, start_script, write_rows
from tests.reliability.inside import succeed
from tests.reliability.test_interruptions import wait_for
from tests.runs import grpo_run

PROBLEMS = rows(DEMO_DATA / "problems_test.jsonl")[:6]
QUESTION, GOLD = PROBLEMS[0]["question"], PROBLEMS[0]["answer"].split()[-1]
MESSAGE = ".user.message, .bot.message"
RAMBLING = ("--temperature", "100", "--max-new-tokens", "900")  # nearly every token is as likely


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished GRPO run with an adapter that changes every reply."""
    path = grpo_run(tmp_path_factory.mktemp("runs") / "tiny", steps=2)
    make_adapter(DEMO_MODEL, path / "adapter", spread=0.1)
    questions = ({"question": row["question"]} for row in PROBLEMS)
    write_rows(path / "eval" / "after.jsonl", *questions)
    return path


@pytest.fixture(scope="module")
def weights(run: Path) -> Weights:
    return Weights(source.find(str(run)), Evaluation(max_new_tokens=48))


# --- replies --------------------------------------------------------------------------------------


def test_replies_are_those_that_were_scored(run: Path, weights: Weights) -> None:
    """With the adapter on and off, token by token as in batches that are scored."""
    system = source.find(str(run)).prompt.system
    requested = [conversation(problem["question"], PromptFormat(system)) for problem in PROBLEMS]
    for side, folder in ((weights.base, DEMO_MODEL), (weights.tuned, run / "adapter")):
        loaded = pretrained.load_for_scoring(str(folder), False, "float32", 256)
        expected = inference.generator(*loaded, Evaluation(max_new_tokens=48), 0)(requested)
        for each, complete in zip(requested, expected, strict=True):
            *parts, last = side(each, 0)
            assert last == complete and last.ids == complete.ids
            assert len(parts) == complete.tokens
            texts = [part.text for part in parts]
            assert all(b.startswith(a) for a, b in pairwise(texts))
            assert complete.text.startswith(texts[-1])


def test_a_closed_reply_leaves_the_model_as_it_was(weights: Weights) -> None:
    requested = conversation(QUESTION, PromptFormat())
    *_, complete = weights.tuned(requested, 0)
    for side in (weights.base, weights.tuned):
        with closing(side(requested, 0)) as replies:
            next(replies)
    *_, again = weights.tuned(requested, 0)
    assert again == complete
    *_, base = weights.base(requested, 0)
    assert base.text != complete.text


def test_sampling_follows_its_seed(run: Path) -> None:
    how = Evaluation(max_new_tokens=12, temperature=2.0)
    weights, requested = Weights(source.find(str(run)), how), conversation(QUESTION, PromptFormat())
    first, same, other = (list(weights.tuned(requested, seed))[-1].text for seed in (0, 0, 1))
    assert first == same != other


def test_characters_come_whole() -> None:
    from transformers import AutoTokenizer

    tokenizer, text = AutoTokenizer.from_pretrained(DEMO_MODEL), "Élève : 👩‍🚀🙂 à\u202f3 €"
    ids = tokenizer(text)["input_ids"]
    shown = [text_so_far(tokenizer, ids[:end]) for end in range(1, len(ids) + 1)]
    assert len(ids) > len(text)  # most of these take several tokens
    assert all(text.startswith(part) for part in shown) and shown[-1] == text


def test_a_conversation_that_is_too_long_is_refused(weights: Weights) -> None:
    with pytest.raises(ConfigError, match=r"takes \d{4} tokens, and the model can take 1024"):
        list(weights.tuned(conversation("why " * 1200, PromptFormat()), 0))
    *_, last = weights.tuned(conversation("3" * 1000, PromptFormat()), 0)  # little room is left
    assert last.tokens < 24


# --- a pipe, and one question ---------------------------------------------------------------------


def test_a_pipe(run: Path, weights: Weights) -> None:
    given = f"{QUESTION}\n\nEt après ?\n"
    result = succeed("chat", run, "--max-new-tokens", "48", stdin=given)
    expected = ""
    prompt = PromptFormat(source.find(str(run)).prompt.system)
    known = load_known(source.find(str(run)))
    for question in (QUESTION, "Et après ?"):
        expected += f"> {question}\n"
        for name, side in (("before", weights.base), ("after", weights.tuned)):
            *_, reply = side(conversation(question, prompt), 0)
            lines = reply.text.rstrip().split("\n")
            notes = []
            if reply.truncated:
                notes.append("cut after 48 tokens (--max-new-tokens, or the context is full)")
            if question == QUESTION:
                earned = known.rewards(question, reply, prompt)
                notes += [f"{key} {value:g}" for key, value in earned.items()]
                notes.append(f"right answer {GOLD}")
            expected += "".join(f"{name:<6}  {line}\n" for line in lines)
            expected += f"{'':6}  [{', '.join(notes)}]\n" if notes else ""
        expected += "\n"
    assert result.stdout == expected and "right answer " in expected
    assert "Loading" in result.stderr


# --- a terminal -----------------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "chat.py", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "xterm"},
            # A job that a script put in the background ignores it, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def until(self, pattern: str, within: float = 120.0) -> str:
        """What is written up to the pattern; raises where the command ends before."""
        deadline = time.monotonic() + within
        while not (actual := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, self.seen
            self.seen += os.read(self._ours, 65536).decode(errors="replace").replace("\r", "")
        output, self.seen = self.seen[: actual.end()], self.seen[actual.end() :]
        return output

    def ends(self) -> int:
        code = self.process.wait(60)
        os.close(self._ours)
        return code


def test_ctrl_c_stops_a_reply_and_then_leaves(run: Path, tmp_path: Path) -> None:
    terminal = Terminal(run, *RAMBLING)
    greeting = terminal.until(r"\n> $")
    assert "before  assets/demo_model" in greeting and "System prompt: Solve" in greeting
    terminal.type("Who?\n")
    for side in ("before", "after"):
        terminal.until(rf"{side} +\S.{{20}}")  # it is being written
        terminal.ctrl_c()
        assert "cut" not in terminal.until(r"\[stopped\]")
    terminal.until(r"\n> $")
    terminal.type("And why?\n")  # the conversation goes on
    terminal.until(r"before +\S.{20}")
    terminal.ctrl_c()
    terminal.until(r"after +\S.{20}")
    terminal.ctrl_c()
    terminal.until(r"\n> $")
    file = tmp_path / "talk.jsonl"
    terminal.type(f"/save {file}\n")
    terminal.until("Saved 2 questions.*\n> $")
    time.sleep(1.0)  # until readline waits for a key: a signal just before is seen at the next one
    terminal.ctrl_c()
    assert terminal.ends() == 130
    first, second = rows(file)
    assert (first["question"], second["question"]) == ("Who?", "And why?")
    assert all(len(row[side]) >= 20 for row in (first, second) for side in ("before", "after"))


# --- other sources --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "demo.gguf"
    gguf.write_gguf(DEMO_MODEL, "f16", path, "demo", str(tree))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_no_reply_of_llama_cpp(
    file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """llama.cpp's server would wait for replies that nobody reads any more."""
    output, data = tmp_path / "out", DEMO_DATA / "problems_test.jsonl"
    command = ("evaluate", "--model", file, "--data", data, "--output", output)
    process = start_script(*command, "--batch-size", "8", *RAMBLING)
    wait_for(process, (output / "replies.jsonl").exists)
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert not (tmp_path / ".out.lock").exists()


def test_a_gguf_file_and_a_server(file: Path, tmp_path: Path) -> None:
    result = succeed("chat", file, "--question", QUESTION)
    head, *lines = result.stdout.rstrip().splitlines()
    assert head == f"> {QUESTION}" and lines and all(line.startswith("reply  ") for line in lines)
    with serve(file) as url:
        assert succeed("chat", url, "--question", QUESTION).stdout == result.stdout
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot load"), serve(broken):
        pass


def test_a_base_model_that_is_gone(tmp_path: Path) -> None:
    lost = tmp_path / "adapter"
    lost.mkdir()
    (lost / adapter.CONFIG).write_text(json.dumps({adapter.BASE: "/no/such/model"}))
    with pytest.raises(ConfigError, match="its base model /no/such/model does not exist"):
        source.find(str(lost))


# --- the browser ----------------------------------------------------------------------------------


@dataclass
class Served:
    url: str
    requested: list[str]
    output: list[str]
    browser: Any

    def tab(self, width: int = 1280, scheme: str = "light") -> Any:
        tab = self.browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("request", lambda request: self.requested.append(request.url))
        tab.on("console", lambda message: self.output.append(message.text))
        tab.on("pageerror", lambda error: self.output.append(str(error)))
        tab.goto(self.url)
        tab.get_by_role("button", name="Ask", exact=True).wait_for()
        return tab


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def served(run: Path, browser: Any) -> Iterator[Served]:
    """The page of greedy replies, asked for as a user does."""
    port = free_port()
    process = start_script("chat", run, "--web", "--port", str(port))

    def answers() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    wait_for(process, answers)
    url = f"http://127.0.0.1:{port}/"
    yield Served(url, [], [], browser)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.strip() == f"Open {url} in a browser; Ctrl-C ends it."


def texts(tab: Any, side: int) -> list[str]:
    """The messages in a side of the page."""
    actual: list[str] = tab.locator(".side").nth(side).locator(MESSAGE).all_inner_texts()
    return [text.strip() for text in actual]


def test_the_page(run: Path, weights: Weights, served: Served) -> None:
    system = source.find(str(run)).prompt.system
    for width, scheme in ((1280, "light"), (390, "dark")):
        tab = served.tab(width, scheme)
        tab.get_by_role("button", name=QUESTION[:30]).click()
        tab.wait_for_function("document.querySelector('textarea').value")
        if scheme == "light":
            tab.get_by_role("button", name="Ask", exact=True).click()
        else:
            tab.get_by_label("Your question").press("Enter")
        tab.get_by_text(f"right answer {GOLD}").nth(1).wait_for()
        for index, side in enumerate((weights.base, weights.tuned)):
            *_, reply = side(conversation(QUESTION, PromptFormat(system)), 0)
            assert texts(tab, index)[0] == QUESTION
            assert texts(tab, index)[1].startswith(reply.text.strip()[:40])
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.get_by_role("button", name="Clear", exact=True).click()
        tab.wait_for_function("!document.querySelector('.side .message')")
        tab.close()
    assert {urlsplit(url).hostname for url in served.requested} == {"127.0.0.1"}
    assert served.output == []


def test_stop_and_clear_end_a_reply(run: Path, served: Served) -> None:
    from posttrain.chat.web import Page

    how = Evaluation(max_new_tokens=900, temperature=100.0)
    rambling = Weights(source.find(str(run)), how)
    sides = [Side("before", rambling.base, "a"), Side("after", rambling.tuned, "b")]
    page = Page(Talk(sides, None), "title", [])
    port = free_port()
    page.open(port, share=False)
    served.url = f"http://127.0.0.1:{port}/"
    try:
        tab = served.tab()
        assert tab.get_by_label("Your question").bounding_box()["width"] > 900  # no examples
        for button in ("Stop", "Clear"):
            tab.get_by_label("Your question").fill("Who?")
            tab.get_by_role("button", name="Ask", exact=True).click()
            tab.wait_for_function("document.querySelector('.side .bot.message')")
            tab.get_by_role("button", name=button, exact=True).click()
            if button == "Stop":
                tab.get_by_text("stopped").wait_for()
                length = len("".join(texts(tab, 0)))
                tab.wait_for_timeout(700)
                assert len("".join(texts(tab, 0))) == length and len(texts(tab, 1)) == 1
                tab.get_by_role("button", name="Clear", exact=True).click()
            tab.wait_for_function("!document.querySelector('.side .message')")
            tab.wait_for_timeout(700)
            assert texts(tab, 0) == texts(tab, 1) == []
        other = served.tab()  # of another visitor, whose question waits for the first one's reply
        for each in (tab, other):
            each.get_by_label("Your question").fill("Who?")
            each.get_by_role("button", name="Ask", exact=True).click()
            tab.wait_for_function("document.querySelector('.side .bot.message')")
        other.get_by_role("button", name="Stop", exact=True).click()
        other.wait_for_timeout(300)
        tab.get_by_role("button", name="Stop", exact=True).click()
        tab.get_by_text("stopped").wait_for()
        other.wait_for_timeout(1500)
        assert texts(other, 0) == texts(other, 1) == []
        upload = f"{served.url}gradio_api/upload"
        assert httpx.post(upload, files={"files": b"x" * 9}, trust_env=False).status_code == 413
        tab.close()
        other.close()
    finally:
        page.close()
