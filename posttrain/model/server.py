"""Replies of an OpenAI-compatible server: vLLM, llama.cpp, Ollama and others."""

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from eval import Completion, Conversation
from posttrain.base.errors import ConfigError, PostTrainError, first_line
from posttrain.data.render import NONE, Variables
from posttrain.settings import Evaluation

TRIES = 4
PATIENCE_S = 600.0  # a busy CPU server may take minutes for one long reply
LONGEST_PAUSE_S = 60.0  # that a server may request
KEY_VARIABLE = "OPENAI_API_KEY"
Ask = Callable[[Conversation, int], Completion]  # answers one conversation, with a seed


def parameters(evaluation: Evaluation, variables: Variables = NONE) -> dict[str, Any]:
    """The fields of a request that say how a reply is generated; `variables` are those of the chat
    template, in a field that not every server knows."""
    sent = {"max_tokens": evaluation.max_new_tokens, "temperature": 0.0, **evaluation.sampling}
    return {**sent, "chat_template_kwargs": dict(variables)} if variables else sent


class Server:
    """A server that several threads may use at once.

    Args:
        parameters: sent with each request; the server has its own defaults for others.
        model: the first model that the server lists, if it is None.
        key_variable: the environment variable that holds the key.
        patience_s: seconds to wait for an answer.

    Every method raises ConfigError if the server cannot be reached, refuses a request or sends
    something else than such servers do.
    """

    def __init__(
        self,
        url: str,
        parameters: Mapping[str, Any] = NONE,
        model: str | None = None,
        key_variable: str = KEY_VARIABLE,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._url, self._parameters = url, parameters
        self._client = _client(url, key_variable, patience_s)
        self.model = model or self._first_model()

    def ask(self, conversation: Conversation, seed: int) -> Completion:
        """The reply to one conversation. A request is repeated if the server is busy, fails or
        takes too long: after growing pauses, or the pause that the server requests."""
        answer = self._request("POST", "/chat/completions", self._body(conversation, seed))
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
            truncated = choice["finish_reason"] == "length"
        except (KeyError, IndexError, TypeError):
            short = str(answer)[:200]
            raise ConfigError(f"{self._url} answered without a choice: {short}") from None
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Completion(text, tokens if isinstance(tokens, int) else None, truncated)

    def stream(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        """The reply so far, again and again as it grows. `tokens` counts the pieces that came; most
        servers send a token in each."""
        body = {**self._body(conversation, seed), "stream": True}
        text, tokens, reason = "", 0, ""
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(self._url, response)
                for choice in self._choices(response):
                    piece = (choice.get("delta") or {}).get("content") or ""
                    reason = choice.get("finish_reason") or reason
                    text, tokens = text + piece, tokens + bool(piece)
                    yield Completion(text, tokens, truncated=reason in ("", "length"))
        except httpx.TransportError as error:
            raise ConfigError(f"{self._url} broke off its answer: {first_line(error)}") from None
        if not reason:
            raise ConfigError(f"{self._url} ended its answer without saying why")

    def _body(self, conversation: Conversation, seed: int) -> dict[str, Any]:
        return {"model": self.model, "messages": conversation, "seed": seed, **self._parameters}

    def _first_model(self) -> str:
        answer = self._request("GET", "/models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ConfigError(
                f"{self._url} lists no models: not an OpenAI-compatible server?"
            ) from None

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer, after up to TRIES tries."""
        where = f"{self._client.base_url}{path.lstrip('/')}"
        for attempt in range(TRIES):
            pause = 0.5 * 2**attempt
            try:
                response = self._client.request(method, path, json=body)
                if response.is_success:
                    return response.json()
                problem = f"status {response.status_code}"
                if response.status_code < 500 and response.status_code != 429:
                    raise self._refusal(where, response)
                requested = response.headers.get("Retry-After", "")  # or a date (RFC 9110, 10.2.3)
                if requested.isdecimal():
                    pause = max(pause, min(float(requested), LONGEST_PAUSE_S))
            except httpx.TransportError as error:
                problem = first_line(error)
            except ValueError:
                problem = "an answer that is not JSON"
            if attempt + 1 < TRIES:
                time.sleep(pause)
        raise ConfigError(
            f"no answer from {where}: {problem} ({TRIES} tries); is a server running there?"
        )

    def _refusal(self, where: str, response: httpx.Response) -> ConfigError:
        answer = self._without_key(response.text)[:300]
        return ConfigError(f"{where} refused the request: status {response.status_code}: {answer}")

    def _without_key(self, text: str) -> str:
        """An answer of the server with the key removed, in case it repeats the key."""
        key = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "[key]") if key else text

    def _choices(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        """The first choice of every event; those without one, such as the usage, are skipped. Lines
        are as in https://html.spec.whatwg.org/multipage/server-sent-events.html."""
        for line in response.iter_lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field not in ("data", "error") or value == "[DONE]":
                continue
            try:
                event = json.loads(value)
                choices = event.get("choices", []) if field == "data" else None
                wrong = choices is None or "error" in event
            except (ValueError, AttributeError):
                wrong = True
            if wrong:
                error = self._without_key(value)[:200]
                raise ConfigError(f"{self._url} answered with an error: {error}")
            if choices:
                yield choices[0]


def _client(url: str, key_variable: str, patience_s: float) -> httpx.Client:
    base = url.rstrip("/").removesuffix("/v1") + "/v1"
    key = os.environ.get(key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # an HTTP library's message would show the key
        raise ConfigError(f"{key_variable} holds a character that no key has, such as a line break")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        client = httpx.Client(base_url=base, headers=headers, timeout=patience_s, trust_env=False)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url} is not a URL: {error}") from None
    if not client.base_url.host:
        raise ConfigError(f"{url} is not a URL: it names no host")
    return client


def as_they_come(
    ask: Ask, requests: Sequence[tuple[Conversation, int]], at_once: int
) -> Iterator[tuple[int, Completion]]:
    """Index and completion of each request, `at_once` at a time, in the order of the answers. After
    an error of `ask` nothing more is sent; what is under way is still yielded, and then the error
    is raised. A signal waits for nothing."""
    over = threading.Event()

    def answer(request: tuple[Conversation, int]) -> Completion | None:
        if over.is_set():
            return None
        try:
            return ask(*request)
        except PostTrainError:
            over.set()  # at once: no worker starts on another
            raise

    pool = ThreadPoolExecutor(at_once)
    failed: PostTrainError | None = None
    indices = {pool.submit(answer, request): index for index, request in enumerate(requests)}
    try:
        for done in as_completed(indices):
            if isinstance(error := done.exception(), PostTrainError):
                failed = failed or error
            elif completion := done.result():
                yield indices[done], completion
    finally:
        over.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise failed
