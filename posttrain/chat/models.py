"""Load what answers: the sides of a chat, from weights, a GGUF file or a server."""

import argparse
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path

from eval import Completion, Conversation
from posttrain.base.paths import shown
from posttrain.chat.conversation import Side, Stream, Talk
from posttrain.chat.source import Source
from posttrain.chat.weights import Weights
from posttrain.model import pretrained, runtime
from posttrain.model.llama_server import FULL_DISTRIBUTION, serve
from posttrain.model.server_stream import ServedReplies
from posttrain.scoring.answers import until_answer
from posttrain.settings import Evaluation


def evaluation(source: Source, asked: argparse.Namespace) -> Evaluation:
    """How replies are generated: as the run was scored, but greedily unless asked otherwise."""
    trained = source.run.get("evaluation") or {}
    given = asked.max_new_tokens or trained.get("max_new_tokens")
    return Evaluation(
        temperature=asked.temperature,
        stop_at_answer=trained.get("stop_at_answer", False),
        **({"max_new_tokens": given} if given else {}),
    )


def load(source: Source, how: Evaluation, stack: ExitStack) -> list[Side]:
    """The sides of a chat with this model. The server of a GGUF file runs until `stack` closes.

    Raises:
        ConfigError: it cannot be loaded, or the server cannot be reached.
    """
    name = shown(Path(source.model)) if Path(source.model).exists() else source.model
    if source.kind in ("url", "gguf"):
        url, sampling = source.model, {}
        if source.kind == "gguf":
            print(f"Loading {name} into llama.cpp")
            context = max(source.trained_length, pretrained.CONTEXT)
            url = stack.enter_context(serve(Path(source.model), context))
            sampling = FULL_DISTRIBUTION
        served = ServedReplies(url, how, source.template_variables, sampling)
        about = name if source.kind == "gguf" else f"{served.model} at {name}"
        stream = until_answered(served.stream) if how.stop_at_answer else served.stream
        return [Side("reply", stream, about)]
    device = runtime.start(verbose=False, threads=None)
    print(f"Loading {name} on {device.name}")
    weights = Weights(source, how)
    if source.kind == "model":
        return [Side("reply", weights.tuned, name)]
    base = str(source.run.get("model", {}).get("name") or "its base model")
    sides = [Side("before", weights.base, base), Side("after", weights.tuned, name)]
    if weights.start_name:
        sides.insert(1, Side("start", weights.start, weights.start_name))
    return sides


def until_answered(stream: Stream) -> Stream:
    """The same replies, each ended where its first whole answer does."""

    def ending(conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        with closing(stream(conversation, seed)) as replies:
            for reply in replies:
                cut = until_answer(reply)
                yield cut
                if cut is not reply:
                    return

    return ending


def greeting(talk: Talk) -> str:
    """What a terminal shows first."""
    width = max(len(side.name) for side in talk.sides)
    sides = [f"{side.name:<{width}}  {side.about}" for side in talk.sides]
    system = f"System prompt: {talk.system}" if talk.system else "No system prompt."
    return "\n".join([*sides, system, "/help lists the commands; Ctrl-C stops a reply.", ""])
