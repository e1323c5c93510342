"""Load what answers: the sides of a chat, from weights in this process, a GGUF file or a server."""

import argparse
import contextlib
import copy
import functools
import queue
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from eval import Completion, Conversation
from posttrain.base.errors import ConfigError, HealthError
from posttrain.base.paths import shown
from posttrain.chat.conversation import Side
from posttrain.chat.source import Source
from posttrain.data.render import render, set_template_variables, token_ids
from posttrain.model import pretrained, runtime
from posttrain.model.inference import as_completion, generation_config
from posttrain.model.llama_server import FULL_DISTRIBUTION, serve
from posttrain.model.merged import sampling_weights
from posttrain.model.server import Server, parameters
from posttrain.scoring.answers import precision
from posttrain.settings import Evaluation
from posttrain.settings.adapters import find_adapter

HOST = "127.0.0.1"  # this machine alone
START = "start"  # peft's name of the second adapter
INCOMPLETE = "\ufffd"  # what the first bytes of a character decode to


def check_port(port: int) -> None:
    """Raise ConfigError unless the page can be served on a port: it is in range and free."""
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--port {port}: the page cannot be served there ({error}); give another, such as "
            "--port 7861"
        ) from None


def evaluation(source: Source, args: argparse.Namespace) -> Evaluation:
    """How replies are generated: as the run was scored, but greedily by default."""
    trained = source.run.get("evaluation") or {}
    limit = args.max_new_tokens or trained.get("max_new_tokens")
    return Evaluation(
        temperature=args.temperature,
        stop_at_answer=trained.get("stop_at_answer", False),
        **({"max_new_tokens": limit} if limit else {}),
    )


def load(source: Source, evaluation: Evaluation, stack: contextlib.ExitStack) -> list[Side]:
    """The sides of a chat with this model. The server of a GGUF file runs until `stack` closes.
    Raises ConfigError if it cannot be loaded, or the server cannot be reached."""
    name = shown(Path(source.model)) if Path(source.model).exists() else source.model
    if source.kind in ("url", "gguf"):
        url, sent = source.model, parameters(evaluation, source.prompt.chat_template_kwargs)
        if source.kind == "gguf":
            print(f"Loading {name} into llama.cpp")
            context = max(source.trained_length, pretrained.CONTEXT)
            url = stack.enter_context(serve(Path(source.model), context))
            sent = {**FULL_DISTRIBUTION, **sent}
        served = Server(url, sent)
        about = name if source.kind == "gguf" else f"{served.model} at {name}"
        return [Side("reply", served.stream, about)]
    device = runtime.start(verbose=False, threads=None)
    print(f"Loading {name} on {device.name}")
    weights = Weights(source, evaluation)
    if source.kind != "adapter":
        return [Side("reply", weights.tuned, name)]
    base = str(source.run.get("model", {}).get("name") or "its base model")
    sides = [Side("before", weights.base, base), Side("after", weights.tuned, name)]
    if weights.start_name:
        sides.insert(1, Side("start", weights.start, weights.start_name))
    return sides


class Weights:
    """A model in memory. It generates one reply at a time."""

    def __init__(self, source: Source, evaluation: Evaluation) -> None:
        """An adapter's base is loaded as it was for its training. Call it after runtime.start();
        raises ConfigError if the model cannot be loaded."""
        self._context = pretrained.context(source.model, source.trained_length)
        self._model, self._tokenizer = pretrained.load_for_scoring(
            source.model, max_seq_length=self._context, **precision(source.model)
        )
        set_template_variables(self._tokenizer, source.prompt.chat_template_kwargs)
        self._config = generation_config(self._model, self._tokenizer, evaluation)
        self._one_at_a_time = threading.Lock()  # a page may abandon a reply without closing it
        self.start_name: str | None = None
        """The adapter that the run started from, if it is still there."""
        start = source.run.get("model", {}).get("adapter") if source.kind == "adapter" else None
        if start:
            with contextlib.suppress(ConfigError):
                pretrained.check_files(folder := find_adapter(start))
                self._model.load_adapter(str(folder), START)
                self.start_name = start
        self.tuned = functools.partial(self._stream, contextlib.nullcontext)
        self.base = functools.partial(self._stream, lambda: self._model.disable_adapter())
        self.start = functools.partial(self._stream, self._with_start)
        """Streams of replies: of the model, with the adapter off, with the one of the start."""

    @contextlib.contextmanager
    def _with_start(self) -> Iterator[None]:
        self._model.set_adapter(START)
        try:
            yield
        finally:
            self._model.set_adapter("default")

    def _stream(
        self, side: Callable[[], Any], conversation: Conversation, seed: int
    ) -> Generator[Completion, None, None]:
        """Closing the generator ends the reply after the current token.

        Tokens are generated in a thread, so that a signal can end the wait for them, while changes
        to the model for one reply are always undone. Raises ConfigError if there is no room for a
        reply, and HealthError if the conversation does not fit the memory.
        """
        (prompt,) = token_ids(self._tokenizer, [render(self._tokenizer, conversation)])
        room = self._context - len(prompt)
        if room < 1:
            raise ConfigError(
                f"the conversation takes {len(prompt)} tokens, and the model can take "
                f"{self._context}: begin a new one"
            )
        config = copy.copy(self._config)
        config.max_new_tokens = min(config.max_new_tokens, room)
        tokens = _Tokens()
        args = (prompt, config, seed, side(), tokens)
        writer = threading.Thread(target=self._generate, args=args, daemon=True)
        writer.start()
        try:
            reply: list[int] = []
            while (token := tokens.queue.get()) is not None:
                if isinstance(token, Exception):
                    raise token
                reply.append(token)
                text = text_so_far(self._tokenizer, reply)
                yield Completion(text, len(reply), truncated=True, ids=tuple(reply))
            if reply:
                yield as_completion(self._tokenizer, reply, set(config.eos_token_id), None)
        finally:
            tokens.stopped.set()
            writer.join()

    def _generate(
        self, prompt: list[int], config: Any, seed: int, side: Any, tokens: "_Tokens"
    ) -> None:
        import torch
        from transformers import StoppingCriteriaList

        ids = torch.tensor([prompt], device=self._model.device)
        try:
            with (
                self._one_at_a_time,
                runtime.inference_mode(self._model),
                side,
                sampling_weights(self._model),
                torch.random.fork_rng(),
            ):
                torch.manual_seed(seed)
                self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([tokens]),
                )
        except torch.OutOfMemoryError:
            tokens.queue.put(HealthError("out of memory; a new conversation takes less"))
        except Exception as error:  # raised again by _stream()
            tokens.queue.put(error)
        finally:
            tokens.queue.put(None)


def text_so_far(tokenizer: Any, reply: list[int]) -> str:
    """The text of an unfinished reply, without a last character that is still incomplete."""
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    return text.rstrip(INCOMPLETE)


class _Tokens:
    """Stopping criterion of transformers' generate(), which passes each new token on."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        """Token ids, then None, or what ended the generation."""
        self.stopped = threading.Event()
        """Set when nobody reads the reply any more."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Called after each token with all ids so far, (1, W); returns whether to stop."""
        import torch

        self.queue.put(int(input_ids[0, -1]))
        return torch.tensor([self.stopped.is_set()], device=input_ids.device)
