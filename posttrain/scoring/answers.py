"""Answer conversations with any model (hub model, folder, adapter, GGUF file, server), and keep the
replies as they come, so that an interrupted evaluation resumes."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval import Completion, Conversation, conversation
from eval.figures import label, plain
from eval.gsm8k import Problem, Reply, Score
from eval.measures import headline
from posttrain.base.files import append_rows, model_fingerprint, sha256
from posttrain.base.paths import here_or_project, is_gguf, is_url
from posttrain.base.progress import progress_bar
from posttrain.data.render import clock_note, set_template_variables
from posttrain.model import inference, pretrained, runtime
from posttrain.model.llama_server import FULL_DISTRIBUTION, serve
from posttrain.model.provenance import run_of
from posttrain.model.server import PATIENCE_S, Server, as_they_come, parameters
from posttrain.run.replies import claim
from posttrain.scoring import reward_functions
from posttrain.settings import Evaluation, Prompt
from rewards.answer import ends_with_answer

AT_ONCE = 8  # requests to a server of others, where evaluation.batch_size is null
Answer = tuple[int, int, Completion]  # index of a conversation, number of the sample, reply
Done = Set[tuple[int, int]]  # the indices and samples that need no answer


@dataclass(frozen=True)
class EvaluatedModel:
    """Which model answers, and how."""

    name: str  # hub name, folder of a model or adapter, GGUF file, or URL of a server
    evaluation: Evaluation
    prompt: Prompt
    precision: Mapping[str, Any] = field(default_factory=dict)  # as `precision` returns it
    samples: int = 1
    seed: int = 0
    patience_s: float = PATIENCE_S  # to wait for a server's answer
    base: str | None = None  # of an adapter, where it is not the one that the adapter names

    def request(self, **more: Any) -> dict[str, Any]:
        """What its replies depend on, as in request.json; `more` replaces and adds."""
        return {
            "model": self.name,
            **self.precision,
            "system": self.prompt.system or None,
            "examples": [each.model_dump() for each in self.prompt.examples] or None,
            "chat_template_kwargs": self.prompt.chat_template_kwargs or None,
            **self.evaluation.decoding,
            "seed": self.seed,
            **more,
        }

    @contextlib.contextmanager
    def answering(
        self, conversations: Sequence[Conversation], done: Done
    ) -> Iterator[Iterator[list[Answer]]]:
        """The answers in batches, from a model that is loaded or served inside of the block."""
        if is_url(self.name):
            yield self._of_server(self.name, conversations, done)
        elif is_gguf(self.name):
            context = max(self._trained_length, pretrained.CONTEXT)
            with serve(Path(self.name), context, self._at_once, keep_prompts=False) as url:
                yield self._of_server(url, conversations, done)
        else:
            yield self._of_weights(*self._load(), conversations, done)

    @property
    def _trained_length(self) -> int:
        return int(run_of(self.name)[1].get("model", {}).get("max_seq_length", 0))

    @property
    def _at_once(self) -> int:
        """Requests to a server at the same time. A file answers one by one: llama.cpp's replies
        depend on what is computed beside them, and would vary."""
        return self.evaluation.batch_size or (AT_ONCE if is_url(self.name) else 1)

    def _of_server(
        self, url: str, conversations: Sequence[Conversation], done: Done
    ) -> Iterator[list[Answer]]:
        """One answer at a time, as they come."""
        sent = parameters(self.evaluation, self.prompt.chat_template_kwargs)
        if is_gguf(self.name):
            sent = {**FULL_DISTRIBUTION, **sent}
        server = Server(url, sent, patience_s=self.patience_s)
        count = len(conversations)
        every = [(i, sample) for sample in range(self.samples) for i in range(count)]
        missing = [each for each in every if each not in done]
        requests = [(conversations[i], self.seed + sample * count + i) for i, sample in missing]
        for number, completion in as_they_come(server.ask, requests, self._at_once):
            if self.evaluation.stop_at_answer:
                completion = until_answer(completion)
            yield [(*missing[number], completion)]

    def _of_weights(
        self, model: Any, tokenizer: Any, conversations: Sequence[Conversation], done: Done
    ) -> Iterator[list[Answer]]:
        """Batches of several times what is generated at once. Each is answered in full or not at
        all, also where some are in `done`: below float32, and when sampling, a reply depends on its
        batch, and an interrupted evaluation has to end like any other."""
        size = self.evaluation.batch_size or inference.batch_that_fits(model, self.evaluation)
        for sample in range(self.samples):
            seed = self.seed + sample
            generate = inference.generator(model, tokenizer, self.evaluation, seed)
            for start in range(0, len(conversations), 4 * size):
                batch = range(start, min(start + 4 * size, len(conversations)))
                if any((i, sample) not in done for i in batch):
                    completions = generate([conversations[i] for i in batch])
                    yield [(i, sample, c) for i, c in zip(batch, completions, strict=True)]

    def _load(self) -> tuple[Any, Any]:
        device = runtime.start(verbose=False, threads=None)
        print(f"Loading {self.name} on {device.name}")
        length = pretrained.context(self.name, self._trained_length, self.base)
        model, tokenizer = pretrained.load_for_scoring(
            self.name, max_seq_length=length, base=self.base, **self.precision
        )
        variables = self.prompt.chat_template_kwargs
        set_template_variables(tokenizer, variables, "--chat-template-kwargs")
        if note := clock_note(tokenizer):
            print(note)
        return model, tokenizer


def adapter_of_run(model: str) -> str:
    """The adapter's folder, where the named model is a run folder that has one."""
    adapter = here_or_project(model) / "adapter"
    return str(adapter) if (adapter / "adapter_config.json").is_file() else model


def weights_fingerprint(model: str) -> str | None:
    """SHA-256 of a GGUF file or a local folder, so that a retrained one is not mistaken."""
    if is_gguf(model):
        return sha256(Path(model))
    if is_url(model) or not (folder := Path(pretrained.local_or_hub(model))).is_dir():
        return None
    return model_fingerprint(folder)


def precision(model: str, dtype: str | None = None, load_in_4bit: bool = False) -> dict[str, Any]:
    """What the base weights are loaded in: as given, else as the adapter's run was trained."""
    if is_url(model) or is_gguf(model):
        return {"dtype": None, "load_in_4bit": None}
    adapter = Path(pretrained.local_or_hub(model)) / "adapter_config.json"
    trained = run_of(model)[1].get("model", {}) if adapter.is_file() else {}
    return {
        "dtype": dtype or trained.get("dtype", "auto"),
        "load_in_4bit": load_in_4bit or trained.get("load_in_4bit", False),
    }


def until_answer(completion: Completion) -> Completion:
    """A reply up to its first complete answer, as a model that stops there would have left it."""
    for tag in re.finditer("</answer>", completion.text):
        text = completion.text[: tag.end()]
        if ends_with_answer(text):
            return replace(completion, text=text, truncated=False)
    return completion


def collect(
    model: EvaluatedModel,
    conversations: Sequence[Conversation],
    done: Done,
    keep: Callable[[Sequence[Answer]], Mapping[str, str] | None],
) -> float:
    """Pass every answer that is not in `done` to `keep`, batch by batch; `keep` may return what the
    progress bar shows. Returns the tokens a second, without the time to load the model."""
    tokens, total = 0, len(conversations) * model.samples
    with (
        model.answering(conversations, done) as batches,
        progress_bar("answering", total, len(done), leave=True) as bar,
    ):
        started = time.monotonic()
        for batch in batches:
            tokens += sum(completion.tokens or 0 for *_, completion in batch)
            new = [answer for answer in batch if answer[:2] not in done]
            bar.set_postfix(keep(new), refresh=False)
            bar.update(len(new))
        return tokens / (time.monotonic() - started)


def answer_all(
    model: EvaluatedModel,
    problems: Sequence[Problem],
    request: dict[str, Any],
    folder: Path,
    done: dict[tuple[str, int], Reply],
    score: Score[Any],
) -> float | None:
    """Answer and score what is missing, sample by sample, longest questions first; fills `done`.
    The folder is made with the first replies: a model that does not load leaves none behind.
    Returns the tokens a second; None where nothing was missing."""
    if len(done) == len(problems) * model.samples:
        return None
    main = headline("rewards" if request["rewards"] else "numbers")
    ordered = sorted(problems, key=lambda p: len(p.question), reverse=True)
    indices = {p.question: i for i, p in enumerate(ordered)}

    def keep(answers: Sequence[Answer]) -> dict[str, str]:
        with reward_functions.reward_errors():
            replies = [score(ordered[i], completion, sample) for i, sample, completion in answers]
        if not (folder / "request.json").is_file():
            claim(folder, request)
        append_rows(folder / "replies.jsonl", [reply.as_row() for reply in replies])
        done.update({(reply.question, reply.sample): reply for reply in replies})
        mean = sum(reply.scores()[main] or 0.0 for reply in done.values()) / len(done)
        return {label(main): plain(main, mean)}

    conversations = [conversation(p.question, model.prompt) for p in ordered]
    kept = {(indices[question], sample) for question, sample in done}
    return collect(model, conversations, kept, keep)
