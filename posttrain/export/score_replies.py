"""Score an exported file of a DPO run by its replies to the held-out prompts, paired with the
adapter's replies: their language, length, end and repetition."""

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import measures
from eval.preference import Pair
from eval.replies import PromptReply
from posttrain.base.errors import DataError
from posttrain.base.files import (
    append_rows,
    cut_off_half_line,
    fingerprint,
    jsonl_rows,
    rows_of,
    write_text,
)
from posttrain.base.progress import progress_bar
from posttrain.run.folder import RunFolder
from posttrain.run.replies import claim
from posttrain.run.results import paired
from posttrain.scoring import answers, pairs
from posttrain.scoring.answers import Asking
from posttrain.settings import DPOSettings


class ReplyScorer:
    """Scores files on the prompts that the adapter answered after its training."""

    def __init__(self, run: Path, settings: DPOSettings) -> None:
        adapter = pairs.read_scores(RunFolder(run), settings, "after")
        if adapter is None:
            raise DataError(f"{run}: eval/after*.jsonl are incomplete; there is nothing to compare")
        self._adapter = replace(adapter, pairs=[], divergence=[], problems={})
        self._language = settings.data.language or "fr"
        where = run / "eval" / "after.jsonl"
        prompts = rows_of(Pair, jsonl_rows(where), where)[: len(adapter.replies)]
        self._prompts = [*prompts, *pairs.without_system(prompts)]
        self.fingerprint = fingerprint(self._prompts)

    def score(
        self, asking: Asking, request: dict[str, Any], folder: Path
    ) -> tuple[float | None, dict[str, Any]]:
        """Tokens a second of the replies that were still missing, if any were, and the score."""
        path = folder / "replies.jsonl"
        known = _read(path)
        speed = None
        if len(known) < len(self._prompts):
            claim(folder, request)
            speed = self._answer(asking, known, path)
            rows = ({"place": n, **vars(reply)} for n, reply in sorted(known.items()))
            write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        with_system = len(self._adapter.replies)
        every = [known[place] for place in range(len(self._prompts))]
        file = replace(
            self._adapter, replies=every[:with_system], without_system=every[with_system:]
        )
        mine, theirs = (
            {name: values for name, values in side.measures().items() if values}
            for side in (file, self._adapter)
        )
        main = next(iter(mine))  # the share in the language that the run wants
        both = list(zip(theirs[main], mine[main], strict=True))
        compared = measures.compare(theirs, mine)
        return speed, paired(main, both, measures.summarise(mine), compared)

    def _answer(self, asking: Asking, known: dict[int, PromptReply], into: Path) -> float:
        """Fill `known` and its file as replies come; returns their tokens a second."""
        turns = [pair.conversation for pair in self._prompts]
        done = {(place, 0) for place in known}
        tokens = 0
        with contextlib.ExitStack() as stack:
            if asking.served:
                url = stack.enter_context(answers.serve_file(asking))
                given = answers.answers_of_server(asking, url, turns, done)
            else:
                given = answers.answers_of_model(asking, answers.load(asking), turns, done)
            bar = stack.enter_context(progress_bar("answering", len(turns), len(known), leave=True))
            started = time.monotonic()
            for batch in given:
                tokens += sum(completion.tokens for *_, completion in batch)
                places = [place for place, *_ in batch]
                asked = [self._prompts[place] for place in places]
                completions = [completion for *_, completion in batch]
                measured = pairs.measured(asked, completions, "file", self._language)
                new = {p: r for p, r in zip(places, measured, strict=True) if p not in known}
                append_rows(into, [{"place": p, **vars(reply)} for p, reply in new.items()])
                known.update(new)
                bar.update(len(new))
            return tokens / (time.monotonic() - started)


def _read(path: Path) -> dict[int, PromptReply]:
    """The replies that are there; half a last line, which a crash left, is removed."""
    if not path.exists():
        return {}
    cut_off_half_line(path)
    rows = jsonl_rows(path)
    places = [row["place"] for row in rows]
    return dict(zip(places, rows_of(PromptReply, rows, path), strict=True))
