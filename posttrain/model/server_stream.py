"""Replies of an OpenAI-compatible server as they are written: server-sent events."""

import json
from collections.abc import Generator, Iterator
from typing import Any

import httpx

from eval import Completion, Conversation
from posttrain.base.errors import ConfigError, first_line
from posttrain.data.render import NONE, Variables
from posttrain.model.server import (
    KEY_VARIABLE,
    PATIENCE_S,
    first_model,
    open_client,
    without_key,
)
from posttrain.settings import Evaluation

LAST = "[DONE]"


class ServedReplies:
    """Streams the replies of the first model that a server lists.

    Raises:
        ConfigError: the server cannot be reached, or lists no model.
    """

    def __init__(
        self,
        url: str,
        evaluation: Evaluation,
        variables: Variables = NONE,
        sampling: Variables = NONE,
    ) -> None:
        """`variables`, if there are any, go to the server's chat template. `sampling` has further
        parameters; of those that it lacks, the server has defaults of its own."""
        self._client = open_client(url, KEY_VARIABLE, PATIENCE_S)
        self._url, self._evaluation, self._variables = url, evaluation, variables
        self._sampling = sampling
        self.model = first_model(url)

    def stream(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        """The reply so far, again and again as it grows.

        `tokens` counts the pieces that came; most servers send a token in each.

        Raises:
            ConfigError: the server refuses the request, breaks off, or sends no events.
        """
        body = {
            "model": self.model,
            "messages": conversation,
            "max_tokens": self._evaluation.max_new_tokens,
            "temperature": self._evaluation.temperature,
            "seed": seed,
            "stream": True,
            **self._sampling,
            **({"chat_template_kwargs": dict(self._variables)} if self._variables else {}),
        }
        text, tokens, reason = "", 0, ""
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as response:
                self._check(response)
                for choice in self._choices(response):
                    piece = (choice.get("delta") or {}).get("content") or ""
                    reason = choice.get("finish_reason") or reason
                    text, tokens = text + piece, tokens + bool(piece)
                    yield Completion(text, tokens, truncated=reason in ("", "length"))
        except httpx.TransportError as error:
            raise ConfigError(f"{self._url} broke off its answer: {first_line(error)}") from None
        if not reason:
            raise ConfigError(f"{self._url} ended its answer without saying why")

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            response.read()
            answer = without_key(self._client, response.text)[:300]
            raise ConfigError(
                f"{self._url} refused the request: status {response.status_code}: {answer}"
            )

    def _choices(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        """The first choice of every event; events that have none, such as the usage, are skipped.

        See https://html.spec.whatwg.org/multipage/server-sent-events.html for the lines.
        """
        for line in response.iter_lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field not in ("data", "error") or value == LAST:
                continue
            try:
                event = json.loads(value)
                choices = event.get("choices", []) if field == "data" else None
                wrong = choices is None or "error" in event
            except (ValueError, AttributeError):
                wrong = True
            if wrong:
                said = without_key(self._client, value)[:200]
                raise ConfigError(f"{self._url} answered with an error: {said}")
            if choices:
                yield choices[0]
