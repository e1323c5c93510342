"""Run an export: find what is left to do, check the disk, then make, prove and record each file."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.base.disk import check_folder, is_disk_full
from posttrain.base.errors import ConfigError, ExportError
from posttrain.base.files import model_fingerprint, sync_folder
from posttrain.base.lock import hold
from posttrain.base.paths import shown
from posttrain.base.progress import duration
from posttrain.data.render import set_template_variables
from posttrain.export import gguf, merge, models, ollama, parity, score, weights
from posttrain.export.proof import Record
from posttrain.export.source import Trained, base_folder
from posttrain.export.texts import gate_texts
from posttrain.model.device import free_memory
from posttrain.model.llama_server import FULL_DISTRIBUTION, serve
from posttrain.model.pretrained import end_tokens
from posttrain.model.provenance import record_of, write_record
from posttrain.model.runtime import hush_libraries
from posttrain.report import export_words, next_steps
from posttrain.run.results import Check
from posttrain.run.room import MERGED, check_room, in_order, merged_dtype
from posttrain.settings import Evaluation, Export, Prompt


def export(trained: Trained, settings: Export) -> int:
    """Make, prove and record what `settings.to` names; returns 0, or 4 if a file is unproven.
    Raises ConfigError if nothing is requested, or there is no 16-bit base, room or llama.cpp, and
    ExportError if a tool failed."""
    if not settings.to:
        raise ConfigError("nothing to export: pass --to merged_16bit,gguf:q8_0 (export.to)")
    name, base = base_folder(trained, settings.base)
    merge.check_adapter(trained.adapter, base)
    check_folder(trained.output)
    trained.output.mkdir(parents=True, exist_ok=True)
    lease = hold(trained.output / ".export.lock", trained.output, "another export is writing there")
    if trained.output != trained.adapter.parent and (known := record_of(str(trained.adapter))):
        write_record(trained.output, known)
    hush_libraries()
    exports = Exports(trained, settings, name, base)
    for target in exports.wanted:
        if exports.proven[target]:
            print(f"{target}: proven already, left as it is", flush=True)
        elif not exports.make(target) and target == MERGED:
            break  # the other files are compared with these weights
    lease.release()
    if exports.unproven:
        record = shown(exports.record.path)
        print(f"\nUNPROVEN: {', '.join(exports.unproven)} (kept; see {record})")
    else:
        made = {t: exports.record.content["exports"][t]["path"] for t in exports.wanted}
        print("\nProven")
        for target, path in (made | {"record": exports.record.path.name}).items():
            print(f"  {target:12}  {shown(trained.output / path)}")
    if settings.score and "torch" in sys.modules:
        free_memory()  # which the gate no longer needs, and scoring does
    code = score.in_a_process(trained.output, base, settings) if settings.score else 0
    if exports.unproven:
        return code if code > 128 else ExportError.exit_code  # 128 + the number of a signal
    print(next_steps.after_export(trained.output, made, trained.name, trained.run))
    return code


class Exports:
    """The targets of one export and what they share."""

    def __init__(self, trained: Trained, settings: Export, base_name: str, base: Path) -> None:
        self.trained, self.settings, self.base = trained, settings, base
        self.dtype = merged_dtype(settings.dtype, settings.to)
        stored = merge.stored_dtype(base)
        self.record = Record(
            trained.output,
            {"name": base_name, "dtype": stored, "sha256": model_fingerprint(base)},
            model_fingerprint(trained.adapter),
        )
        self.unproven: list[str] = []
        self.wanted = in_order(settings.to)
        self._prompt = Prompt.model_validate(trained.run.get("prompt") or {})
        self._variables = self._prompt.chat_template_kwargs
        self._gate = {"dtype": self.dtype, "parity": settings.parity.model_dump()}
        self.proven = {t: self.record.proven(t, self._gate_of(t)) for t in self.wanted}
        left = [target for target in self.wanted if not self.proven[target]]
        if left == [MERGED] and MERGED not in settings.to:
            left = []  # it was only needed to make files that are proven, and may be deleted
            self.wanted.remove(MERGED)
        print(f"Base: {base_name} ({stored}); merging in float32, rounded once to {self.dtype}")
        for leftover in (
            *trained.output.glob(f".{MERGED}.*"),
            *trained.output.glob("gguf/.*.gguf.*"),
        ):
            _remove(leftover)  # of an export that was killed; this one has the lock
        check_room(base, trained.output, left)

    def _gate_of(self, target: str) -> dict[str, Any]:
        """What a proof depends on but base and adapter; a Modelfile is of the first GGUF file."""
        first = next((name for name in self.wanted if name.startswith("gguf:")), None)
        return {**self._gate, "gguf": first} if target == "ollama" else self._gate

    @cached_property
    def known(self) -> parity.Known:
        """The reference. The adapter's model is not kept."""
        return self._adapter()[1]

    def _adapter(self) -> tuple[models.TorchModel, parity.Known]:
        """The adapter's model, and the reference that it gives."""
        model = models.adapter_model(self.base, self.trained.adapter, self._variables)
        conversations = gate_texts(self.trained.run)
        return model, parity.reference(model, conversations, self.settings.parity.new_tokens)

    def make(self, target: str) -> bool:
        """Make, check and record one target; returns whether it is proven."""
        against = "the tokenizer's prompts" if target == "ollama" else "the adapter"
        print(f"\n{target}: making it, comparing it with {against}", flush=True)
        started = time.monotonic()
        if target == MERGED:
            path, checks = self._merged()
        elif target == "ollama":
            path, checks = self._ollama()
        else:
            path, checks = self._gguf(target.removeprefix("gguf:"))
        seconds = time.monotonic() - started
        proven = self.record.add(target, path, seconds, self._gate_of(target), checks)
        if not proven:
            self.unproven.append(target)
        print("\n".join(export_words.lines(checks)))
        for line in export_words.advice([check.name for check in checks if not check.passed]):
            print(f"  {line}")
        size = export_words.size(self.record.content["exports"][target]["bytes"])
        print(f"  {'proven' if proven else 'UNPROVEN'} ({size}, {duration(seconds)})")
        return proven

    def _merged(self) -> tuple[Path, list[Check]]:
        def write(into: Path) -> list[Check]:
            adapter, self.known = self._adapter()
            merge.merge(adapter.model, self.base, self.trained.adapter, self.dtype, into)
            del adapter  # frees its memory before the merged model is loaded
            return self._checks(into, MERGED, models.merged_model(into, self._variables))

        return _in_place(self.trained.output / MERGED, write)

    def _gguf(self, kind: str) -> tuple[Path, list[Check]]:
        merged, name = self.trained.output / MERGED, self.trained.name

        def write(into: Path) -> list[Check]:
            gguf.write_gguf(merged, kind, into, name, self.settings.llama_cpp)
            with serve(into, context=self.known.longest + 8) as url:
                return self._checks(into, kind, models.LlamaCpp(url, self._variables))

        return _in_place(self.trained.output / "gguf" / f"{name}-{kind}.gguf", write)

    def _checks(self, path: Path, kind: str, model: models.Model) -> list[Check]:
        """The proof of a file: its weights, and what they compute."""
        limits = self.settings.parity.model_dump()
        limit = limits.get(f"max_divergence_{kind}", limits["max_divergence_16_bit"])
        sums = weights.check_weights(self.base, self.trained.adapter, path, kind, self.dtype)
        return [*sums, *parity.check_model(model, self.known, limit)]

    def _ollama(self) -> tuple[Path, list[Check]]:
        target = next(target for target in self.wanted if target.startswith("gguf:"))
        entry = self.record.content["exports"][target]
        tokenizer = merge.load_tokenizer(self.trained.adapter, self.base)
        set_template_variables(tokenizer, self._variables)
        ends = end_tokens(merge.declared_generation(self.base), tokenizer)
        path, check = ollama.export_ollama(
            self.trained.output / entry["path"],
            tokenizer,
            self._prompt,
            tokenizer.convert_ids_to_tokens(sorted(ends)),
            sampling(self.trained.run),
        )
        return path, [Check("proven_gguf", target, target, bool(entry["proven"])), check]


def sampling(run: dict[str, Any]) -> dict[str, float]:
    """Ollama's parameters for the sampling with which the run was scored; greedy without a run."""
    scored = run.get("evaluation") or {}
    decoding = {name: scored[name] for name in Evaluation().decoding if name in scored}
    sampled = Evaluation(**decoding).sampling
    plain = FULL_DISTRIBUTION if sampled else {"repeat_penalty": 1}
    return {"temperature": 0.0, **plain, **sampled}


def _in_place(final: Path, write: Callable[[Path], list[Check]]) -> tuple[Path, list[Check]]:
    """Write and check a file or folder under a temporary name, then rename it. The name holds the
    process id, because a tool of an earlier, killed export may still write. Raises ConfigError if
    the disk is full."""
    final.parent.mkdir(exist_ok=True)
    for leftover in final.parent.glob(f".{final.name}.*"):
        _remove(leftover)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    old = partial.with_suffix(".old")
    try:
        checks = write(partial)
    except Exception as error:
        full = is_disk_full(error, final.parent)
        _remove(partial)
        if full:
            where = f"{final.parent}: the disk is full"
            raise ConfigError(f"{where}; free some space and export again") from error
        raise
    for path in [partial, *partial.rglob("*")]:
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    sync_folder(final.parent)
    _remove(old)
    return final, checks


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
