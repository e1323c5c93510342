"""Load what answers: the sides of a chat, from weights, a GGUF file or a server."""

import argparse
import socket
from contextlib import ExitStack
from pathlib import Path

from posttrain.base.errors import ConfigError
from posttrain.base.paths import shown
from posttrain.chat.conversation import Side
from posttrain.chat.source import Source
from posttrain.chat.weights import Weights
from posttrain.model import pretrained, runtime
from posttrain.model.llama_server import FULL_DISTRIBUTION, serve
from posttrain.model.server import Server, parameters
from posttrain.settings import Evaluation

HOST = "127.0.0.1"  # this machine alone


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


def load(source: Source, evaluation: Evaluation, stack: ExitStack) -> list[Side]:
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
