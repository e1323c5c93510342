"""Answers through an OpenAI-compatible server: a real one on this machine, and what goes wrong."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, PromptFormat, conversation
from posttrain.base.errors import ConfigError
from posttrain.model import server
from posttrain.settings import Evaluation
from tests.helpers import write_rows
from tests.unit.conftest import Ask

KEY = "sk-test-3141592653"
# Status, JSON (or raw text), and headers if need be; status 0 drops the connection.
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Plan = Callable[[dict[str, Any], int], Reply]


def choice(text: str | None, finish_reason: str = "stop", tokens: int = 5) -> Reply:
    message = {"role": "assistant", "content": text}
    usage = {"completion_tokens": tokens}
    return 200, {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}


def echo(body: dict[str, Any], number: int) -> Reply:
    """The last word of the question."""
    return choice(body["messages"][-1]["content"].split()[-1])


class Server(ThreadingHTTPServer):
    """Answers by `plan(body, number of the request)` and keeps what it was sent."""

    daemon_threads = True
    plan: Plan
    models: Reply
    url: str

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.models = echo, (200, {"data": [{"id": "tiny"}, {"id": "other"}]})
        self.bodies: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is expected."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.remember()
        self.send(*(self.server.models if self.path == "/v1/models" else (404, "no such page")))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.remember()
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        reply = self.server.plan(body, number)
        with self.server.lock:
            self.server.busy -= 1
        self.send(*(reply if self.path == "/v1/chat/completions" else (404, "no such page")))

    def remember(self) -> None:
        with self.server.lock:
            self.server.seen.append((self.path, self.headers["Authorization"]))

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        if headers and "X-Hang" in headers:  # says that an answer follows, and is silent
            self.end_headers()
            self.connection.recv(1)  # until the client is gone
            return
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    """The server's address, which answers until the end of the `with`."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = Server()
    with serving(served) as served.url:
        yield served


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, in seconds."""
    pauses: list[float] = []
    monkeypatch.setattr(server.time, "sleep", pauses.append)
    return pauses


def ask(
    url: str, questions: Sequence[str], batch_size: int = 4, **settings: Any
) -> list[Completion]:
    evaluation = Evaluation(max_new_tokens=77, **settings)
    ask = server.Server(url, server.parameters(evaluation)).ask
    prompts = [conversation(question, PromptFormat("Be brief.")) for question in questions]
    requests = [(prompt, 10 + index) for index, prompt in enumerate(prompts)]
    answers = dict(server.as_they_come(ask, requests, batch_size))
    return [answers[index] for index in range(len(requests))]


def test_order_is_kept_while_requests_run_side_by_side(api: Server) -> None:
    def slow_first(body: dict[str, Any], number: int) -> Reply:
        time.sleep(0.05 if number % 4 == 0 else 0.01)
        return echo(body, number)

    api.plan = slow_first
    replies = ask(api.url, [f"Say {n}" for n in range(24)])
    assert [reply.text for reply in replies] == [str(n) for n in range(24)]
    assert 2 <= api.most_busy <= 4


def test_what_a_request_holds(api: Server) -> None:
    ask(api.url, ["Say 1", "Say 2"], batch_size=1, temperature=0.5)
    assert api.bodies[0] == {
        "model": "tiny",
        "messages": conversation("Say 1", PromptFormat("Be brief.")),
        "max_tokens": 77,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 10,
    }
    assert api.bodies[1]["seed"] == 11
    assert [path for path, _ in api.seen] == ["/v1/models", *["/v1/chat/completions"] * 2]
    variables = {"enable_thinking": False}
    sent = server.parameters(Evaluation(), variables)
    server.Server(api.url, sent).ask(conversation("Say 1", PromptFormat()), 1)
    assert api.bodies[2]["chat_template_kwargs"] == variables


def test_length_is_what_truncated_means(api: Server) -> None:
    replies = {"a": choice("cut", "length", 77), "b": choice("done", "stop", 3), "c": choice(None)}
    api.plan = lambda body, _: replies[body["messages"][-1]["content"]]
    assert ask(api.url, ["a", "b", "c"]) == [
        Completion("cut", 77, True),
        Completion("done", 3, False),
        Completion("", 5, False),
    ]


def test_url_with_v1_and_a_server_without_token_counts(api: Server) -> None:
    for usage in (None, [], {}, {"completion_tokens": None}):
        api.plan = lambda *_, usage=usage: (200, {**choice("7")[1], "usage": usage})
        assert ask(f"{api.url}/v1/", ["Say 7"]) == [Completion("7", None, False)]


@pytest.mark.parametrize(
    ("failure", "pauses"),
    [
        ((500, "oops"), [0.5, 1.0, 2.0]),
        ((0, ""), [0.5, 1.0, 2.0]),
        ((429, "slow", {"Retry-After": "7"}), [7.0, 7.0, 7.0]),
        ((429, "slow", {"Retry-After": "86400"}), [60.0, 60.0, 60.0]),
        ((429, "slow", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), [0.5, 1.0, 2.0]),
    ],
)
def test_a_failure_that_passes_is_tried_again(
    api: Server, no_pauses: list[float], failure: Reply, pauses: list[float]
) -> None:
    api.plan = lambda body, number: failure if number < 3 else echo(body, number)
    assert ask(api.url, ["Say 7"])[0].text == "7"
    assert len(api.bodies) == 4
    assert no_pauses == pauses


@pytest.mark.parametrize(
    ("failure", "message", "tries"),
    [
        ((500, "oops"), "no answer from URL: .*status 500.* is a server running", server.TRIES),
        ((200, "<html>"), "no answer from URL: .*not JSON", server.TRIES),
        ((0, ""), "no answer from URL: .*disconnected", server.TRIES),
        ((400, "too large"), "refused the request: status 400.*too large", 1),
        ((200, {"choices": [{"text": "7"}]}), "answered without a choice", 1),
        ((200, None), "answered without a choice", 1),
    ],
)
def test_a_failure_that_stays(
    api: Server, no_pauses: list[float], failure: Reply, message: str, tries: int
) -> None:
    api.plan = lambda *_: failure
    with pytest.raises(ConfigError, match=message.replace("URL", f"{api.url}/v1/chat/completions")):
        ask(api.url, ["Say 7"])
    assert len(api.bodies) == tries == len(no_pauses) + 1


@pytest.mark.parametrize("answer", [{}, {"data": []}, "tiny"])
def test_a_server_of_another_kind_or_none(api: Server, answer: Any) -> None:
    for url in ("http://", "http://127.0.0.1:port"):
        with pytest.raises(ConfigError, match="is not a URL: "):
            ask(url, ["Say 7"])
    api.models = (200, json.dumps(answer))
    with pytest.raises(ConfigError, match="lists no models"):
        ask(api.url, ["Say 7"])


@pytest.mark.parametrize(
    ("given", "sent"),
    [(KEY, f"Bearer {KEY}"), (f"{KEY}\n", f"Bearer {KEY}"), (None, None)],  # a file ends in \n
)
def test_key_is_sent(
    api: Server, monkeypatch: pytest.MonkeyPatch, given: str | None, sent: str | None
) -> None:
    if given:
        monkeypatch.setenv("OPENAI_API_KEY", given)
    ask(api.url, ["Say 7"])
    assert [header for _, header in api.seen] == [sent] * 2


@pytest.mark.parametrize(
    ("key", "failure"),
    [
        (KEY, (401, f"Incorrect API key provided: {KEY}.")),
        (KEY, (200, KEY)),
        (KEY, (0, "")),
        (f"{KEY}\nX-Other: 1", (200, "")),
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_key_is_in_no_message(
    api: Server, monkeypatch: pytest.MonkeyPatch, key: str, failure: Reply
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    api.models = failure
    with pytest.raises(ConfigError) as caught:
        ask(api.url, ["Say 7"])
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) > 20


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(ask: Ask, tmp_path: Path) -> Run:
    """scripts/evaluate.py on ten sums, where importing torch ends with code 99."""
    sums = [
        {"question": f"What is 1 + {n}?", "answer": f"1+{n}={n + 1}.\n#### {n + 1}"}
        for n in range(10)
    ]
    problems = write_rows(tmp_path / "sums.jsonl", *sums)

    def run(url: str, *arguments: str | Path, code: int = 0, **environment: str) -> Any:
        data = [] if "--data" in arguments else ["--data", problems]
        words = ["--model", url, "--output", tmp_path / "out", *data, *arguments]
        result = ask("evaluate", *words, **environment)
        assert result.returncode == code, result.stderr
        return result

    return run


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return content


def add(body: dict[str, Any], number: int) -> Reply:
    """The right sum, in the form for even numbers, in plain text for odd ones, cut for the 9."""
    n = int(body["messages"][-1]["content"].split()[-1].rstrip("?"))
    text = f"1+{n}={n + 1}\n<answer>{n + 1}</answer>" if n % 2 == 0 else f"It is {n + 1}."
    return choice(text, "length" if n == 9 else "stop", tokens=n)


def test_script_end_to_end(api: Server, run: Run, tmp_path: Path) -> None:
    api.plan = add
    result = run(api.url, OPENAI_API_KEY=KEY)
    written = report(tmp_path)
    values = {name: measure["value"] for name, measure in written["measures"].items()}
    shares = {"strict": 0.5, "tagged": 0.5, "lenient": 1.0, "format_rate": 0.5}
    assert values == {**shares, "truncated_rate": 0.1, "mean_tokens": 4.5}
    assert all(measure["n"] == 10 for measure in written["measures"].values())
    facts = ("model", "served", "samples", "trained_on")
    assert [written[name] for name in facts] == [api.url, "tiny", 1, 0]
    assert "strict accuracy" in result.stdout and "50.0% [23.7%, 76.3%]" in result.stdout
    replies = tmp_path / "out" / "replies.jsonl"
    assert len(replies.read_text().splitlines()) == len(api.bodies) == 10
    kept = "".join(p.read_text() for p in replies.parent.iterdir()) + result.stdout + result.stderr
    assert KEY not in kept and ("/v1/models", f"Bearer {KEY}") in api.seen

    run(api.url)
    assert report(tmp_path) == written
    rows = [{**json.loads(line), "tokens": None} for line in replies.read_text().splitlines()]
    write_rows(replies, *rows[:-1], {**rows[-1], "tokens": 3})
    run(api.url)
    assert report(tmp_path)["measures"]["mean_tokens"]["n"] == 1
    api.models = (200, {"data": [{"id": "bigger"}]})
    assert "served was 'tiny', now 'bigger'" in run(api.url, code=2).stderr
    assert len(api.bodies) == 10  # nothing was requested twice


def test_script_warns_that_mgsm_overlaps_with_gsm8k(api: Server, run: Run, tmp_path: Path) -> None:
    api.plan = add
    data = tmp_path / "mgsm_fr.tsv"
    data.write_text("Combien font 1 et 4?\t5\n", encoding="utf-8")
    result = run(api.url, "--data", data, "--language", "fr")
    assert "MGSM is GSM8K's test questions 0-249 translated" in result.stdout
    assert api.bodies[0]["messages"][0]["content"].startswith("Résous le problème")


def test_script_takes_samples(api: Server, run: Run, tmp_path: Path) -> None:
    """Of four samples, those with an odd seed are wrong."""

    def plan(body: dict[str, Any], number: int) -> Reply:
        right = add(body, number)
        return right if body["seed"] % 2 == 0 else choice("<answer>0</answer>")

    api.plan = plan
    run(api.url, "--samples", "4", "--limit", "3")
    assert {(body["temperature"], body["top_p"]) for body in api.bodies} == {(0.8, 1)}
    assert len(api.bodies) == 12
    measures = report(tmp_path)["measures"]
    assert {"pass@1", "pass@2", "pass@4", "majority_vote"} <= set(measures)
    assert measures["lenient"]["value"] == 0.5 and measures["lenient"]["n"] == 3
    assert measures["pass@4"]["value"] == pytest.approx(2 / 3)  # the odd one has no tag


def test_script_resumes_where_a_server_failed(api: Server, run: Run, tmp_path: Path) -> None:
    replies = tmp_path / "out" / "replies.jsonl"
    api.plan = lambda body, number: add(body, number) if number < 6 else (400, "out of credit")
    stopped = run(api.url, "--batch-size", "1", code=2)
    assert stopped.stderr.startswith("error: ") and "out of credit" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = replies.read_text().splitlines()
    assert 0 < len(kept) < 10
    assert not (tmp_path / "out" / "report.json").exists()
    api.plan = add
    run(api.url, "--batch-size", "1")
    assert replies.read_text().splitlines()[: len(kept)] == kept
    assert report(tmp_path)["measures"]["lenient"]["value"] == 1.0
