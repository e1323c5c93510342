"""Serve a GGUF file with llama.cpp, to score and check it in the way in which users will run it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError
from posttrain.base.processor import cores, free_cores

FULL_DISTRIBUTION = {"top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}
"""Sampling at a temperature and nothing else, as adapters are sampled; llama.cpp's own defaults cut
the distribution, and Ollama's penalise repetition, which harms solutions that repeat a number."""

_RUNNING: list[Any] = []
"""Servers end with their block, but after an error or a signal with the process: to end one waits
for the replies that are under way, which nobody reads any more, for ever."""


@contextmanager
def serve(
    gguf: Path, context: int = 4096, parallel: int = 1, keep_prompts: bool = True
) -> Iterator[str]:
    """The URL of a llama.cpp server for the file, on a free port of this machine only.

    Args:
        context: tokens of prompt and reply that one request may take.
        parallel: requests answered at the same time.
        keep_prompts: a request starts from what it shares with the one before, which rounds
            differently. Without it, and one at a time, a reply depends on its request alone.
    """
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            f"llama.cpp's server (the package xllamacpp) does not start here: {error}. Start "
            f"`llama-server -m {gguf}` yourself, and give its URL instead of the file"
        ) from None

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx = context * parallel
    parameters.n_parallel = parallel
    parameters.cache_prompt = keep_prompts
    # Thoughts stay in the reply, as when the adapter writes it.
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    threads = free_cores()
    if threads < cores():
        note = f"note: other programs keep cores busy: llama.cpp uses {threads} of {cores()}"
        print(note, file=sys.stderr)
    for pool in (parameters.cpuparams, parameters.cpuparams_batch):
        pool.n_threads = threads
        pool.poll = 0  # waiting threads sleep: busy waiting would take the cores from working ones
    parameters.verbosity = -1
    parameters.warmup = False
    try:
        server = xllamacpp.Server(parameters)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"llama.cpp cannot load {gguf}: {error}") from None
    _RUNNING.append(server)
    yield str(server.listening_address)
    _RUNNING.remove(server)
    del server
    gc.collect()
