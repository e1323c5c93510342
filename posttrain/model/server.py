"""Answer conversations through an OpenAI-compatible server: vLLM, llama.cpp, Ollama and others."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from eval import Completion, Conversation, Generate
from posttrain.base.errors import ConfigError, PostTrainError
from posttrain.data.render import NONE, Variables
from posttrain.settings import Evaluation

TRIES = 4
PATIENCE_S = 600.0  # a busy CPU server may take minutes for one long reply
LONGEST_PAUSE_S = 60.0  # that a server may ask for
KEY_VARIABLE = "OPENAI_API_KEY"
Ask = Callable[[Conversation, int], Completion]
"""Answers one conversation, with a seed."""


def server_generator(
    url: str,
    evaluation: Evaluation,
    seed: int,
    model: str | None = None,
    variables: Variables = NONE,
) -> Generate:
    """A generate function that uses `URL/chat/completions`; see `asker`.

    It makes `evaluation.batch_size` requests at the same time.
    """
    ask = asker(url, evaluation, model, variables=variables)

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        requests = [(each, seed + place) for place, each in enumerate(conversations)]
        answers = dict(as_they_come(ask, requests, evaluation.batch_size or 1))
        return [answers[place] for place in range(len(requests))]

    return generate


def as_they_come(
    ask: Ask, requests: Sequence[tuple[Conversation, int]], at_once: int
) -> Iterator[tuple[int, Completion]]:
    """Place and completion of each request, `at_once` at a time, in the order of the answers.

    After an error nothing more is asked; what is under way is still yielded, and then the error is
    raised. A signal waits for nothing.

    Raises:
        ConfigError: as `ask`.
    """
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
    places = {pool.submit(answer, request): place for place, request in enumerate(requests)}
    try:
        for done in as_completed(places):
            try:
                completion = done.result()
            except PostTrainError as error:
                failed = failed or error
                continue
            if completion is not None:
                yield places[done], completion
    finally:
        over.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise failed


def asker(
    url: str,
    evaluation: Evaluation,
    model: str | None = None,
    key_variable: str = KEY_VARIABLE,
    patience_s: float = PATIENCE_S,
    variables: Variables = NONE,
    sampling: Variables = NONE,
) -> Ask:
    """A function (conversation, seed) -> completion, which several threads may call at once.

    Without `model`, the first model that the server lists is used. `variables`, if
    there are any, go to the server's chat template, in a field that not every server knows.
    `sampling` has further parameters; of those that it lacks, the server has defaults of its own.
    The key comes from the environment. A request is repeated if the answer takes longer than
    `patience_s` seconds, or if the server is busy or fails: after growing pauses, or the pause that
    the server asks for.

    Raises:
        ConfigError: the server cannot be reached, refuses the request or gives another answer.
    """
    client = open_client(url, key_variable, patience_s)
    name = model or _first_model(client, url)

    def ask(conversation: Conversation, seed: int) -> Completion:
        body = {
            "model": name,
            "messages": conversation,
            "max_tokens": evaluation.max_new_tokens,
            "temperature": evaluation.temperature,
            "seed": seed,
            **sampling,
            **({"chat_template_kwargs": dict(variables)} if variables else {}),
        }
        return _completion(request(client, "POST", "/chat/completions", body), url)

    return ask


def open_client(url: str, key_variable: str, patience_s: float) -> httpx.Client:
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
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


def request(client: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """The JSON answer, after up to TRIES tries."""
    where = f"{client.base_url}{path.lstrip('/')}"
    for attempt in range(TRIES):
        pause = 0.5 * 2**attempt
        try:
            response = client.request(method, path, json=body)
            if response.is_success:
                return response.json()
            problem = f"status {response.status_code}"
            if response.status_code < 500 and response.status_code != 429:
                answer = without_key(client, response.text)[:300]
                raise ConfigError(f"{where} refused the request: {problem}: {answer}")
            pause = max(pause, _requested_pause(response))
        except httpx.TransportError as error:
            problem = str(error) or type(error).__name__
        except ValueError:
            problem = "an answer that is not JSON"
        if attempt + 1 < TRIES:
            time.sleep(pause)
    raise ConfigError(
        f"no answer from {where}: {problem} ({TRIES} tries); is a server running there?"
    )


def _requested_pause(response: httpx.Response) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3); 0 where it is missing or a date."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE_S) if value.isdecimal() else 0.0


def without_key(client: httpx.Client, text: str) -> str:
    """An answer of the server with the key removed, in case it repeats the key."""
    key = client.headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "[key]") if key else text


def first_model(url: str) -> str:
    """The first model that a server lists.

    Raises:
        ConfigError: the server cannot be reached, or lists none.
    """
    return _first_model(open_client(url, KEY_VARIABLE, PATIENCE_S), url)


def _first_model(client: httpx.Client, url: str) -> str:
    answer = request(client, "GET", "/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{url} lists no models: not an OpenAI-compatible server?") from None


def _completion(answer: Any, url: str) -> Completion:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        truncated = choice["finish_reason"] == "length"
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{url} answered without a choice: {str(answer)[:200]}") from None
    tokens = (answer.get("usage") or {}).get("completion_tokens", 0)
    return Completion(text=text, tokens=tokens, truncated=truncated)
