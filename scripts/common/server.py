"""Answer conversations through an OpenAI-compatible server: vLLM, llama.cpp, Ollama and others."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from eval import Completion, Conversation, Generate
from scripts.common.errors import ConfigError
from scripts.common.settings import Evaluation

TRIES = 4
PATIENCE_S = 600.0  # a busy CPU server may take minutes for one long reply


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def server_generator(
    url: str, evaluation: Evaluation, seed: int, model: str | None = None
) -> Generate:
    """A generate function over `URL/chat/completions`, `evaluation.batch_size` requests at a time.

    Without `model`, the first one that the server lists is asked. A key is taken from
    OPENAI_API_KEY. Busy or failing answers are tried again with growing pauses.

    Raises:
        ConfigError: the server cannot be reached or refuses the request.
    """
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(base_url=base, headers=headers, timeout=PATIENCE_S, trust_env=False)
    name = model or _request(client, "GET", "/models")["data"][0]["id"]

    def answer(numbered: tuple[int, Conversation]) -> Completion:
        number, conversation = numbered
        body = {
            "model": name,
            "messages": conversation,
            "max_tokens": evaluation.max_new_tokens,
            "temperature": evaluation.temperature,
            "seed": seed + number,
        }
        return _completion(_request(client, "POST", "/chat/completions", body))

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        with ThreadPoolExecutor(evaluation.batch_size) as pool:
            return list(pool.map(answer, enumerate(conversations)))

    return generate


def _request(client: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """The JSON answer, after up to TRIES tries."""
    for attempt in range(TRIES):
        try:
            response = client.request(method, path, json=body)
            if response.status_code < 500 and response.status_code != 429:
                response.raise_for_status()
                return response.json()
            problem = f"status {response.status_code}"
        except httpx.HTTPStatusError as error:
            raise ConfigError(
                f"{error.request.url} refused the request: {error.response.text[:300]}"
            ) from None
        except (httpx.TransportError, ValueError) as error:
            problem = str(error) or type(error).__name__
        if attempt + 1 < TRIES:
            time.sleep(0.5 * 2**attempt)
    raise ConfigError(f"no answer from {client.base_url}{path.lstrip('/')}: {problem}")


def _completion(answer: Any) -> Completion:
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    tokens = (answer.get("usage") or {}).get("completion_tokens", 0)
    return Completion(text=text, tokens=tokens, truncated=choice["finish_reason"] == "length")
