"""Answers through an OpenAI-compatible server: a real one on this machine, and what goes wrong."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, PromptFormat, conversation
from posttrain.base.errors import ConfigError
from posttrain.model import server
from posttrain.settings import Evaluation
from tests.helpers import ROOT

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

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.models = echo, (200, {"data": [{"id": "tiny"}, {"id": "other"}]})
        self.bodies: list[dict[str, Any]] = []
        self.seen: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

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


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


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
        "seed": 10,
    }
    assert api.bodies[1]["seed"] == 11
    assert [path for path, _ in api.seen] == ["/v1/models", *["/v1/chat/completions"] * 2]


def test_variables_of_the_chat_template(api: Server) -> None:
    variables = {"enable_thinking": False}
    sent = server.parameters(Evaluation(), variables)
    server.Server(api.url, sent).ask(conversation("Say 1", PromptFormat()), 1)
    assert api.bodies[0]["chat_template_kwargs"] == variables


def test_length_is_what_truncated_means(api: Server) -> None:
    replies = {"a": choice("cut", "length", 77), "b": choice("done", "stop", 3), "c": choice(None)}
    api.plan = lambda body, _: replies[body["messages"][-1]["content"]]
    assert ask(api.url, ["a", "b", "c"]) == [
        Completion("cut", 77, True),
        Completion("done", 3, False),
        Completion("", 5, False),
    ]


@pytest.mark.parametrize("end", ["", "/v1/"])
def test_url_with_and_without_v1(api: Server, end: str) -> None:
    assert ask(api.url + end, ["Say 7"])[0].text == "7"


def test_a_server_without_token_counts(api: Server) -> None:
    api.plan = lambda *_: (200, {k: v for k, v in choice("7")[1].items() if k != "usage"})
    assert ask(api.url, ["Say 7"]) == [Completion("7", 0, False)]


@pytest.mark.parametrize("failure", [(500, "oops"), (429, "slow down"), (0, "")])
def test_a_failure_that_passes_is_tried_again(
    api: Server, no_pauses: list[float], failure: Reply
) -> None:
    api.plan = lambda body, number: failure if number < 3 else echo(body, number)
    assert ask(api.url, ["Say 7"])[0].text == "7"
    assert len(api.bodies) == 4
    assert no_pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("requested", "pauses"),
    [
        ("7", [7.0, 7.0]),
        ("86400", [60.0, 60.0]),
        ("Wed, 21 Oct 2026 07:28:00 GMT", [0.5, 1.0]),
    ],
)
def test_the_pause_that_the_server_requests(
    api: Server, no_pauses: list[float], requested: str, pauses: list[float]
) -> None:
    busy = (429, "slow down", {"Retry-After": requested})
    api.plan = lambda body, number: busy if number < 2 else echo(body, number)
    assert ask(api.url, ["Say 7"])[0].text == "7"
    assert no_pauses == pauses


@pytest.mark.parametrize(
    ("failure", "message"),
    [((500, "oops"), "status 500"), ((200, "<html>"), "not JSON"), ((0, ""), "disconnected")],
)
def test_a_failure_that_stays(
    api: Server, no_pauses: list[float], failure: Reply, message: str
) -> None:
    api.plan = lambda *_: failure
    with pytest.raises(ConfigError, match=message) as caught:
        ask(api.url, ["Say 7"])
    assert f"no answer from {api.url}/v1/chat/completions" in str(caught.value)
    assert len(api.bodies) == server.TRIES == len(no_pauses) + 1


def test_a_refusal_is_not_tried_again(api: Server, no_pauses: list[float]) -> None:
    api.plan = lambda *_: (400, '{"error": "max_tokens is too large"}')
    with pytest.raises(ConfigError, match=r"refused the request: status 400.*max_tokens is too"):
        ask(api.url, ["Say 7"])
    assert len(api.bodies) == 1 and no_pauses == []


def test_nothing_runs_there(no_pauses: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConfigError, match=rf"no answer from {url}/v1/models.*is a server running"):
        ask(url, ["Say 7"])


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:port"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL: "):
        ask(url, ["Say 7"])


@pytest.mark.parametrize("answer", [{}, {"data": []}, "tiny"])
def test_a_server_of_another_kind(api: Server, answer: Any) -> None:
    api.models = (200, json.dumps(answer))
    with pytest.raises(ConfigError, match="lists no models"):
        ask(api.url, ["Say 7"])


@pytest.mark.parametrize("answer", [{}, {"choices": [{"text": "7"}]}, None])
def test_an_answer_of_another_kind(api: Server, answer: Any) -> None:
    api.plan = lambda *_: (200, json.dumps(answer))
    with pytest.raises(ConfigError, match="answered without a choice"):
        ask(api.url, ["Say 7"])


@pytest.mark.parametrize("given", [KEY, f"{KEY}\n"])  # as `$(cat file)` is not, a file's text is
def test_key_is_sent(api: Server, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", given)
    ask(api.url, ["Say 7"])
    assert [header for _, header in api.seen] == [f"Bearer {KEY}"] * 2


def test_without_a_key_none_is_sent(api: Server) -> None:
    ask(api.url, ["Say 7"])
    assert [header for _, header in api.seen] == [None] * 2


@pytest.mark.parametrize(
    ("key", "failure"),
    [
        (KEY, (401, f"Incorrect API key provided: {KEY}.")),
        (KEY, (200, KEY)),
        (KEY, (0, "")),
        (f"{KEY}\nX-Other: 1", (200, "")),
    ],
)
def test_key_is_in_no_message(
    api: Server,
    monkeypatch: pytest.MonkeyPatch,
    no_pauses: list[float],
    key: str,
    failure: Reply,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    api.models = failure
    with pytest.raises(ConfigError) as caught:
        ask(api.url, ["Say 7"])
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) > 20


@pytest.fixture
def run(bait: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """scripts/evaluate.py on ten sums, where importing torch ends with code 99."""
    problems = tmp_path / "sums.jsonl"
    rows = [
        {"question": f"What is 1 + {n}?", "answer": f"1+{n}={n + 1}.\n#### {n + 1}"}
        for n in range(10)
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "scripts" / "evaluate.py", *arguments]
        return subprocess.run(
            [*map(str, command), *([] if "--data" in arguments else ["--data", str(problems)])],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(bait), **environment},
        )

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def add(body: dict[str, Any], number: int) -> Reply:
    """The right sum, in the form for even numbers, in plain text for odd ones, cut for the 9."""
    n = int(body["messages"][-1]["content"].split()[-1].rstrip("?"))
    text = f"1+{n}={n + 1}\n<answer>{n + 1}</answer>" if n % 2 == 0 else f"It is {n + 1}."
    return choice(text, "length" if n == 9 else "stop", tokens=n)


def test_script_end_to_end(api: Server, run: Run, tmp_path: Path) -> None:
    api.plan = add
    output = tmp_path / "out"
    result = run("--model", api.url, "--output", output, OPENAI_API_KEY=KEY)
    assert result.returncode == 0, result.stderr
    report = json.loads((output / "report.json").read_text())
    values = {name: measure["value"] for name, measure in report["measures"].items()}
    assert values == {
        "strict": 0.5,
        "tagged": 0.5,
        "lenient": 1.0,
        "format_rate": 0.5,
        "truncated_rate": 0.1,
        "mean_tokens": 4.5,
    }
    assert all(measure["n"] == 10 for measure in report["measures"].values())
    assert (report["model"], report["samples"], report["trained_on"]) == (api.url, 1, 0)
    assert "strict accuracy" in result.stdout and "50.0% [23.7%, 76.3%]" in result.stdout
    assert len((output / "replies.jsonl").read_text().splitlines()) == len(api.bodies) == 10
    kept = "".join(p.read_text() for p in output.iterdir()) + result.stdout + result.stderr
    assert KEY not in kept and ("/v1/models", f"Bearer {KEY}") in api.seen

    again = run("--model", api.url, "--output", output)
    assert again.returncode == 0 and len(api.bodies) == 10  # nothing was requested twice
    assert json.loads((output / "report.json").read_text()) == report


def test_another_model_behind_the_same_url_is_refused(
    api: Server, run: Run, tmp_path: Path
) -> None:
    api.plan = add
    output = tmp_path / "out"
    assert run("--model", api.url, "--output", output).returncode == 0
    assert json.loads((output / "report.json").read_text())["served"] == "tiny"
    api.models = (200, {"data": [{"id": "bigger"}]})
    result = run("--model", api.url, "--output", output)
    assert result.returncode == 2 and len(api.bodies) == 10
    assert "served was 'tiny', now 'bigger'" in result.stderr


def test_script_warns_that_mgsm_overlaps_with_gsm8k(api: Server, run: Run, tmp_path: Path) -> None:
    api.plan = add
    data = tmp_path / "mgsm_fr.tsv"
    data.write_text("Combien font 1 et 4?\t5\n", encoding="utf-8")
    result = run(
        "--model", api.url, "--data", data, "--output", tmp_path / "out", "--language", "fr"
    )
    assert result.returncode == 0, result.stderr
    assert "MGSM is GSM8K's test questions 0-249 translated" in result.stdout
    assert api.bodies[0]["messages"][0]["content"].startswith("Résous le problème")


def test_script_takes_samples(api: Server, run: Run, tmp_path: Path) -> None:
    """Of four samples, those with an odd seed are wrong."""

    def plan(body: dict[str, Any], number: int) -> Reply:
        right = add(body, number)
        return right if body["seed"] % 2 == 0 else choice("<answer>0</answer>")

    api.plan = plan
    output = tmp_path / "out"
    result = run("--model", api.url, "--output", output, "--samples", "4", "--limit", "3")
    assert result.returncode == 0, result.stderr
    assert {(body["temperature"], body["top_p"]) for body in api.bodies} == {(0.8, 1)}
    assert len(api.bodies) == 12
    measures = json.loads((output / "report.json").read_text())["measures"]
    assert {"pass@1", "pass@2", "pass@4", "majority_vote"} <= set(measures)
    assert measures["lenient"]["value"] == 0.5 and measures["lenient"]["n"] == 3
    assert measures["pass@4"]["value"] == pytest.approx(2 / 3)  # the odd one has no tag


def test_script_resumes_where_a_failing_server_stopped_it(
    api: Server, run: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    api.plan = lambda body, number: add(body, number) if number < 6 else (400, "out of credit")
    arguments = ("--model", api.url, "--output", output, "--batch-size", "1")
    stopped = run(*arguments)
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("error: ") and "out of credit" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = (output / "replies.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 10
    assert not (output / "report.json").exists()
    api.plan = add
    assert run(*arguments).returncode == 0
    assert (output / "replies.jsonl").read_text().splitlines()[: len(kept)] == kept
    report = json.loads((output / "report.json").read_text())
    assert report["measures"]["lenient"]["value"] == 1.0


def test_script_without_a_server(run: Run, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = run("--model", url, "--output", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: no answer from {url}/v1/models: ")
    assert result.stderr.count("\n") == 1
