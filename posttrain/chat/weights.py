"""Replies of weights in this process, as they are written: with the adapter on, or off."""

import contextlib
import copy
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

from eval import Completion, Conversation
from posttrain.base.errors import ConfigError, HealthError
from posttrain.chat.source import Source
from posttrain.data.render import render, set_template_variables, token_ids
from posttrain.model import pretrained, runtime
from posttrain.model.inference import StopAtAnswer, as_completion, generation_config
from posttrain.model.merged import sampling_weights
from posttrain.settings import Evaluation
from posttrain.settings.adapters import find_adapter

START = "start"  # peft's name of the second adapter
HALF = "\ufffd"  # what the bytes of a character decode to before the last of them is there


class Weights:
    """A model in memory. It writes one reply at a time, whoever asks.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, source: Source, evaluation: Evaluation) -> None:
        """An adapter's base is loaded as it was for its training. After runtime.start()."""
        trained = source.run.get("model", {}) if source.kind == "adapter" else {}
        self._context = pretrained.context(source.model, source.trained_length)
        self._model, self._tokenizer = pretrained.load_for_scoring(
            source.model,
            load_in_4bit=trained.get("load_in_4bit", False),
            dtype=trained.get("dtype", "auto"),
            max_seq_length=self._context,
        )
        set_template_variables(self._tokenizer, source.template_variables)
        self._config = generation_config(self._model, self._tokenizer, evaluation)
        self._stop = StopAtAnswer(self._tokenizer) if evaluation.stop_at_answer else None
        self._one_at_a_time = threading.Lock()
        start = (source.run.get("model") or {}).get("adapter")
        self.start_name: str | None = None
        """The adapter that the run started from, where it is still there."""
        with contextlib.suppress(ConfigError):
            if start and source.kind == "adapter":
                self._model.load_adapter(str(find_adapter(start)), START)
                self.start_name = start

    def tuned(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        """The model's reply so far, again and again as it grows."""
        return self._stream(conversation, seed, contextlib.nullcontext())

    def base(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        """The same with the adapter off."""
        return self._stream(conversation, seed, self._model.disable_adapter())

    def start(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        """The same with the adapter that the run started from."""
        return self._stream(conversation, seed, self._with_start())

    @contextlib.contextmanager
    def _with_start(self) -> Iterator[None]:
        self._model.set_adapter(START)
        try:
            yield
        finally:
            self._model.set_adapter("default")

    def _stream(
        self, conversation: Conversation, seed: int, side: Any
    ) -> Generator[Completion, None, None]:
        """Closing the generator ends the reply after the token that is being written.

        The tokens are written in a thread of their own: a signal can end the wait for them, while
        what changes the model for a reply is always undone.

        Raises:
            ConfigError: there is no room for a reply.
            HealthError: the conversation does not fit the memory.
        """
        (prompt,) = token_ids(self._tokenizer, [render(self._tokenizer, conversation)])
        tokens, stopped = _Tokens(), threading.Event()
        arguments = (prompt, self._for(prompt), seed, side, tokens, stopped)
        writer = threading.Thread(target=self._write, args=arguments, daemon=True)
        writer.start()
        try:
            reply: list[int] = []
            for token in iter(tokens.next, None):
                reply.append(token)
                yield Completion(text_so_far(self._tokenizer, reply), len(reply), truncated=True)
            if reply:
                ends = set(self._config.eos_token_id)
                yield as_completion(self._tokenizer, reply, ends, self._stop)
        finally:
            stopped.set()
            writer.join()

    def _for(self, prompt: list[int]) -> Any:
        """The GenerationConfig of a reply that fits behind the prompt."""
        room = self._context - len(prompt)
        if room < 1:
            raise ConfigError(
                f"the conversation takes {len(prompt)} tokens, and the model can take "
                f"{self._context}: begin a new one"
            )
        config = copy.copy(self._config)
        config.max_new_tokens = min(config.max_new_tokens, room)
        return config

    def _write(
        self,
        prompt: list[int],
        config: Any,
        seed: int,
        side: Any,
        tokens: "_Tokens",
        stopped: threading.Event,
    ) -> None:
        import torch
        from transformers import StoppingCriteriaList

        ids = torch.tensor([prompt], device=self._model.device)
        criteria = StoppingCriteriaList([_Stopped(stopped, len(prompt), self._stop)])
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
                    stopping_criteria=criteria,
                    streamer=tokens,
                )
        except torch.OutOfMemoryError:
            tokens.fail(HealthError("out of memory; a new conversation takes less"))
        except Exception as error:  # raised again where the tokens are waited for
            tokens.fail(error)
        finally:
            tokens.end()


def text_so_far(tokenizer: Any, reply: list[int]) -> str:
    """The text of a reply that goes on, without a character of which bytes are yet to come."""
    text: str = tokenizer.decode(reply, skip_special_tokens=True)
    return text.rstrip(HALF)


class _Tokens:
    """What transformers' generate() takes as a streamer: a queue of token ids."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        self._prompt_came = False

    def put(self, ids: Any) -> None:
        """Called with the prompt (1, W), and then with each new token (1,)."""
        if self._prompt_came:
            self._queue.put(int(ids[0]))
        self._prompt_came = True

    def fail(self, error: Exception) -> None:
        self._queue.put(error)

    def end(self) -> None:
        self._queue.put(None)

    def next(self) -> int | None:
        """The next token, None after the last one; raises what ended the generation."""
        found = self._queue.get()
        if isinstance(found, Exception):
            raise found
        return found


class _Stopped:
    """Stopping criterion: whoever waits for the reply has gone, or its answer is complete."""

    def __init__(self, stopped: threading.Event, start: int, stop: StopAtAnswer | None) -> None:
        self._stopped, self._start, self._stop = stopped, start, stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        reply = input_ids[0, self._start :].tolist()
        closed = self._stop and reply[-1] in self._stop.closing and self._stop.closed(reply)
        ended = bool(self._stopped.is_set() or closed)
        return torch.tensor([ended], device=input_ids.device)
