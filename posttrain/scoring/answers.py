"""Answer conversations with any model (hub model, folder, adapter, GGUF file, server), and keep the
replies as they come, so that what is interrupted goes on where it stopped."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval import Completion, Conversation, PromptFormat, PromptLike, conversation
from eval.figures import label, plain
from eval.gsm8k import Problem, Reply, Score
from eval.measures import headline
from posttrain.base.files import append_rows
from posttrain.base.paths import is_url
from posttrain.base.progress import progress_bar
from posttrain.data.render import Variables, clock_note, set_template_variables
from posttrain.model import inference, pretrained, runtime
from posttrain.model.llama_server import FULL_DISTRIBUTION, is_gguf, serve
from posttrain.model.server import PATIENCE_S, as_they_come, asker
from posttrain.run.replies import claim
from posttrain.scoring import reward_functions
from posttrain.scoring.provenance import run_config
from posttrain.settings import Evaluation
from rewards.answer import ends_with_answer

AT_ONCE = 8  # requests to a server of others, where evaluation.batch_size is null
Answer = tuple[int, int, Completion]
"""The place of a conversation, the number of the sample, the reply."""


@dataclass(frozen=True)
class Asking:
    """Which model is asked, and how."""

    model: str
    """Hub name, folder of a model or adapter, GGUF file, or URL of an OpenAI-style server."""
    evaluation: Evaluation
    prompt: PromptLike = field(default_factory=PromptFormat)
    """What precedes each question."""
    variables: Variables = field(default_factory=dict)
    """Those of the chat template, prompt.chat_template_kwargs."""
    precision: Mapping[str, Any] = field(default_factory=dict)
    """`dtype` and `load_in_4bit`, as `precision` has them."""
    samples: int = 1
    seed: int = 0
    patience_s: float = PATIENCE_S
    """Seconds to wait for a server's answer."""
    base: str | None = None
    """The base model of an adapter, where it is not the one that the adapter names."""

    @property
    def served(self) -> bool:
        return is_url(self.model) or is_gguf(self.model)

    @property
    def at_once(self) -> int:
        """Requests to a server at the same time. A file answers one by one: llama.cpp's replies
        depend on what is computed beside them, and would be others each time."""
        return self.evaluation.batch_size or (AT_ONCE if is_url(self.model) else 1)

    @property
    def sampling(self) -> Mapping[str, float]:
        """What a server is told beside the temperature: of others', what every server knows."""
        if is_gguf(self.model):
            return FULL_DISTRIBUTION
        return {"top_p": 1} if self.evaluation.temperature else {}


def precision(model: str, dtype: str | None = None, load_in_4bit: bool = False) -> dict[str, Any]:
    """What the base weights are loaded in: as asked, else as the adapter's run was trained."""
    if is_url(model) or is_gguf(model):
        return {"dtype": None, "load_in_4bit": None}
    adapter = Path(pretrained.local_or_hub(model)) / "adapter_config.json"
    trained = run_config(model).get("model", {}) if adapter.is_file() else {}
    return {
        "dtype": dtype or trained.get("dtype", "auto"),
        "load_in_4bit": load_in_4bit or trained.get("load_in_4bit", False),
    }


def load(asking: Asking) -> tuple[Any, Any]:
    """The model, which is no server's, and its tokenizer."""
    device = runtime.start(verbose=False, threads=None)
    print(f"Loading {asking.model} on {device.name}")
    trained = run_config(asking.model).get("model", {}).get("max_seq_length", 0)
    length = pretrained.context(asking.model, trained, asking.base)
    model, tokenizer = pretrained.load_for_scoring(
        asking.model, max_seq_length=length, base=asking.base, **asking.precision
    )
    set_template_variables(tokenizer, asking.variables, "--chat-template-kwargs")
    if note := clock_note(tokenizer):
        print(note)
    return model, tokenizer


def serve_file(asking: Asking) -> contextlib.AbstractContextManager[str]:
    """The URL of a server for a GGUF file, with room for what its run was trained with."""
    trained = run_config(asking.model).get("model", {}).get("max_seq_length", 0)
    context = max(trained, pretrained.CONTEXT)
    return serve(Path(asking.model), context, asking.at_once, keep_prompts=False)


def answers_of_server(
    asking: Asking, url: str, conversations: Sequence[Conversation], done: Set[tuple[int, int]]
) -> Iterator[list[Answer]]:
    """What a server answers, one at a time as the answers come. `done` are the places and samples
    that need none."""
    ask = asker(
        url,
        asking.evaluation,
        patience_s=asking.patience_s,
        variables=asking.variables,
        sampling=asking.sampling,
    )
    left = [
        (place, sample)
        for sample in range(asking.samples)
        for place in range(len(conversations))
        if (place, sample) not in done
    ]
    requests = [
        (conversations[place], asking.seed + sample * len(conversations) + place)
        for place, sample in left
    ]
    for number, completion in as_they_come(ask, requests, asking.at_once):
        if asking.evaluation.stop_at_answer:
            completion = until_answer(completion)
        yield [(*left[number], completion)]


def until_answer(completion: Completion) -> Completion:
    """A reply up to its first whole answer, as a model that stops there would have left it."""
    for tag in re.finditer("</answer>", completion.text):
        text = completion.text[: tag.end()]
        if ends_with_answer(text):
            return replace(completion, text=text, truncated=False)
    return completion


def answers_of_model(
    asking: Asking,
    loaded: tuple[Any, Any],
    conversations: Sequence[Conversation],
    done: Set[tuple[int, int]],
) -> Iterator[list[Answer]]:
    """What a loaded model answers, in batches of several times what it generates at once.

    Part of a batch is never asked again on its own: below float32, and when sampling, a reply
    depends on what else is in its batch, and an interrupted evaluation has to end like any other.
    So there may be answers in a batch that are in `done`.
    """
    at_once = 4 * (
        asking.evaluation.batch_size or inference.batch_that_fits(loaded[0], asking.evaluation)
    )
    for sample in range(asking.samples):
        generate = inference.generator(*loaded, asking.evaluation, asking.seed + sample)
        for start in range(0, len(conversations), at_once):
            places = range(start, min(start + at_once, len(conversations)))
            if any((place, sample) not in done for place in places):
                completions = generate([conversations[place] for place in places])
                yield [(p, sample, c) for p, c in zip(places, completions, strict=True)]


def answer_all(
    asking: Asking,
    problems: Sequence[Problem],
    request: dict[str, Any],
    folder: Path,
    done: dict[tuple[str, int], Reply],
    score: Score[Any],
) -> float | None:
    """Answer what is left, sample by sample, longest questions first; fills `done`.

    The folder is made with the first replies: a model that does not load leaves none behind.
    Returns the tokens a second, without the time to load; None where nothing was left.
    """
    total = len(problems) * asking.samples
    if len(done) == total:
        return None
    main = headline("rewards" if request["rewards"] else "numbers")
    bar = progress_bar("answering", total, len(done), leave=True)
    ordered = sorted(problems, key=lambda p: len(p.question), reverse=True)
    conversations = [conversation(p.question, asking.prompt) for p in ordered]
    places = {p.question: place for place, p in enumerate(ordered)}
    kept = {(places[question], sample) for question, sample in done}
    tokens = 0
    with contextlib.ExitStack() as stack:
        if asking.served:
            gguf = is_gguf(asking.model)
            url = stack.enter_context(serve_file(asking)) if gguf else asking.model
            answers = answers_of_server(asking, url, conversations, kept)
        else:
            answers = answers_of_model(asking, load(asking), conversations, kept)
        started = time.monotonic()
        for batch in answers:
            tokens += sum(completion.tokens for *_, completion in batch)
            with reward_functions.reward_errors():
                replies = [score(ordered[place], c, sample) for place, sample, c in batch]
            new = [reply for reply in replies if (reply.question, reply.sample) not in done]
            if not (folder / "request.json").is_file():
                claim(folder, request)
            append_rows(folder / "replies.jsonl", [reply.as_row() for reply in new])
            done.update({(reply.question, reply.sample): reply for reply in new})
            mean = sum(reply.scores()[main] or 0.0 for reply in done.values()) / len(done)
            bar.set_postfix({label(main): plain(main, mean)}, refresh=False)
            bar.update(len(new))
        seconds = time.monotonic() - started
    bar.close()
    return tokens / seconds
