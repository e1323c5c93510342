"""Score an exported file on the held-out pairs of its DPO run, paired with the adapter's scores.

The implicit reward of a file takes its own log-probabilities, and as reference those of the base
model in 16 bits. llama.cpp's server tells no log-probabilities of a given text, but it tells that
of a token that it is forced to write: one request a token.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import measures, preference
from eval.preference import Pair
from eval.replies import PromptReply
from posttrain.base.errors import DataError
from posttrain.base.files import (
    append_rows,
    cut_off_half_line,
    fingerprint,
    jsonl_rows,
    model_fingerprint,
    rows_of,
    write_text,
)
from posttrain.base.progress import progress_bar
from posttrain.data.render import set_template_variables
from posttrain.export.merge import load_tokenizer
from posttrain.export.parity import LlamaCpp
from posttrain.model.log_probs import pair_log_probs, pair_sequences
from posttrain.run.folder import RunFolder
from posttrain.run.replies import claim
from posttrain.run.results import paired
from posttrain.scoring import answers, pairs
from posttrain.scoring.answers import Asking
from posttrain.settings import DPOSettings

LogProbs = dict[int, tuple[float, float]]
"""By the place of a pair, the log-probabilities of its chosen and its rejected reply, in nats."""


class PairScorer:
    """Scores files on the pairs and prompts that the adapter was scored on after its training."""

    def __init__(self, run: Path, base: Path, settings: DPOSettings) -> None:
        adapter = pairs.read_scores(RunFolder(run), settings, "after")
        if adapter is None:
            raise DataError(f"{run}: eval/after*.jsonl are incomplete; there is nothing to compare")
        where = run / "eval" / "after.jsonl"
        self._run, self._base, self._settings = run, base, settings
        self._adapter = replace(adapter, divergence=[], problems={})
        self._pairs = rows_of(Pair, jsonl_rows(where), where)
        asked = self._pairs[: settings.evaluation.replies]
        self._asked = [*asked, *pairs.without_system(asked)]
        self._with_system = len(asked)
        self.fingerprint = fingerprint([*self._pairs, *self._asked])

    def score(
        self, asking: Asking, request: dict[str, Any], folder: Path
    ) -> tuple[float | None, dict[str, Any]]:
        """Tokens a second of the replies that were still missing, if any were, and the score."""
        tokens = [(s.chosen_tokens, s.rejected_tokens) for s in self._adapter.pairs]
        reference = self._reference()
        log_probs = _read_log_probs(folder / "pairs.jsonl")
        written = _read_replies(folder / "replies.jsonl")
        speed = None
        if len(log_probs) < len(self._pairs) or len(written) < len(self._asked):
            if not (folder / "request.json").is_file():
                claim(folder, request)
            with contextlib.ExitStack() as stack:
                if asking.served:
                    url = stack.enter_context(answers.serve_file(asking))
                    self._log_probs_of_server(url, log_probs, folder / "pairs.jsonl")
                    given = answers.answers_of_server(asking, url, self._prompts, _done(written))
                else:
                    model = answers.load(asking)
                    if len(log_probs) < len(self._pairs):
                        log_probs.update(enumerate(self._log_probs(model)))
                    given = answers.answers_of_model(asking, model, self._prompts, _done(written))
                speed = self._keep_replies(given, written, folder / "replies.jsonl")
            _write_log_probs(folder / "pairs.jsonl", log_probs)  # in order, as replies are
            _write_replies(folder / "replies.jsonl", written)
        scored = preference.score_pairs(
            [log_probs[place] for place in range(len(self._pairs))],
            reference,
            tokens,
            self._settings.training.beta,
        )
        every = [written[place] for place in range(len(self._asked))]
        file = replace(
            self._adapter,
            pairs=scored,
            replies=every[: self._with_system],
            without_system=every[self._with_system :],
        )
        mine, theirs = (_measures(side) for side in (file, self._adapter))
        main = "reward_accuracy"
        both = list(zip(theirs[main], mine[main], strict=True))
        compared = measures.compare(theirs, mine)
        return speed, paired(main, both, measures.summarise(mine), compared)

    @property
    def _prompts(self) -> list[list[dict[str, str]]]:
        return [pair.conversation for pair in self._asked]

    def _log_probs(
        self, model: tuple[Any, Any], reference: bool = False
    ) -> list[tuple[float, float]]:
        return pair_log_probs(*model, self._pairs, pairs.ROWS_AT_ONCE, reference)

    def _reference(self) -> list[tuple[float, float]]:
        """The log-probabilities of the base model in 16 bits, computed once for all files."""
        folder = self._run / "eval" / "exports" / "reference"
        request = {"weights": model_fingerprint(self._base), "fingerprint": self.fingerprint}
        rows = folder / "pairs.jsonl"
        if not rows.exists() or not _is_of(folder, request):
            rows.unlink(missing_ok=True)  # first: never an old reference with the new request
            (folder / "request.json").unlink(missing_ok=True)
            claim(folder, request)
            trained = self._settings.model.dtype
            asking = Asking(
                str(self._run / "adapter"),
                self._settings.evaluation,
                variables=self._settings.prompt.chat_template_kwargs,
                precision={"dtype": trained, "load_in_4bit": False},
                base=str(self._base),
            )
            found = self._log_probs(answers.load(asking), reference=True)
            _write_log_probs(rows, dict(enumerate(found)))
        known = _read_log_probs(rows)
        return [known[place] for place in range(len(self._pairs))]

    def _log_probs_of_server(self, url: str, known: LogProbs, into: Path) -> None:
        """Ask for what `known` lacks, pair by pair; fills it and the file."""
        tokenizer = load_tokenizer(self._run / "adapter", self._base)
        variables = self._settings.prompt.chat_template_kwargs
        set_template_variables(tokenizer, variables)
        sequences = pair_sequences(tokenizer, self._pairs)
        server = LlamaCpp(url, variables)

        with progress_bar("scoring pairs", len(self._pairs), len(known), leave=True) as bar:
            for place in range(len(self._pairs)):
                if place in known:
                    continue
                chosen, rejected = (
                    sum(server.log_probs(ids[:start], ids[start:]))
                    for ids, start in sequences[2 * place : 2 * place + 2]
                )
                known[place] = chosen, rejected
                append_rows(into, [_row(place, known[place])])
                bar.update()

    def _keep_replies(
        self, given: Iterator[list[answers.Answer]], written: dict[int, PromptReply], into: Path
    ) -> float | None:
        """Measure and keep replies as they come; returns their tokens a second."""
        language = self._settings.data.language or "fr"
        started, tokens = time.monotonic(), 0
        with progress_bar("answering", len(self._asked), len(written), leave=True) as bar:
            for batch in given:
                tokens += sum(completion.tokens for *_, completion in batch)
                told = {place: completion for place, _, completion in batch}
                asked = [self._asked[place] for place in told]
                measured = pairs.measured(asked, [*told.values()], "file", language)
                new = {p: r for p, r in zip(told, measured, strict=True) if p not in written}
                append_rows(into, [{"place": p, **vars(r)} for p, r in new.items()])
                written.update(new)
                bar.update(len(new))
        return tokens / (time.monotonic() - started) if tokens else None


def _measures(scores: pairs.Scores) -> dict[str, list[float]]:
    """What a file can be compared by: not the divergence, which its own samples would be for."""
    return {name: v for name, v in scores.measures().items() if name != "kl_per_token"}


def _done(written: dict[int, PromptReply]) -> set[tuple[int, int]]:
    return {(place, 0) for place in written}


def _is_of(folder: Path, request: dict[str, Any]) -> bool:
    path = folder / "request.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) == request


def _row(place: int, values: tuple[float, float]) -> dict[str, Any]:
    return {"place": place, "chosen": values[0], "rejected": values[1]}


def _read_log_probs(path: Path) -> LogProbs:
    return {row["place"]: (row["chosen"], row["rejected"]) for row in _rows(path)}


def _read_replies(path: Path) -> dict[int, PromptReply]:
    rows = _rows(path)
    places = [row["place"] for row in rows]
    return dict(zip(places, rows_of(PromptReply, rows, path), strict=True))


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; half a last line, which a crash left, is removed."""
    if not path.exists():
        return []
    cut_off_half_line(path)
    return jsonl_rows(path)


def _write_log_probs(path: Path, known: LogProbs) -> None:
    _write(path, [_row(place, known[place]) for place in sorted(known)])


def _write_replies(path: Path, written: dict[int, PromptReply]) -> None:
    _write(path, [{"place": place, **vars(written[place])} for place in sorted(written)])


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
