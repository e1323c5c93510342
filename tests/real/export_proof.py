"""What the checks of an export measure on good files and on planted faults of a real model.

    ./run python -m tests.real.export_proof smollm2 [KIND ...]

Adds to tests/real/results/export_proof.json. The weights within reach were 4-bit ones: they lie on
a grid, on which a small adapter would be rounded back to them. Noise of 5% takes them off it, and
that is the base. The adapter is of rank 16 on all seven projections, with random B of 0.003. A
fault is put into the file of 16 bits, which is then quantised.
"""

import argparse
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posttrain.base.files import write_json
from posttrain.export import merge, models, parity
from posttrain.export.gguf import write_gguf
from posttrain.export.llama_cpp import find_quantizer, find_tree, run_tool
from posttrain.export.texts import gate_texts
from posttrain.export.weights import check_weights
from posttrain.model.llama_server import serve
from posttrain.run.results import Check
from posttrain.settings.export import Parity
from tests.helpers import ROOT, make_adapter, read
from tests.real import weights

RESULTS = ROOT / "tests" / "real" / "results" / "export_proof.json"
KINDS = ("merged_16bit", "f16", "bf16", "q8_0", "q4_k_m")
NEW_TOKENS = 48
FEW = 4  # texts that a faulty file is compared on; a good one on all
Edit = Callable[[Path], None]


def fresh_base(source: Path, into: Path) -> Path:
    """The model off its 4-bit grid, with the tokenizer that it was published with."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            size = 0.05 * tensor.float().square().mean().sqrt()
            drawn = torch.randn(tensor.shape, generator=noise) * size
            tensors[name] = (tensor.float() + drawn).to(tensor.dtype)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def edited(change: Callable[[Any, Any], Any], *names: str) -> Edit:
    """Change tensors of a 16-bit GGUF file: `change(values, reader)` gives the new ones."""

    def edit(path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path, "r+")
        for tensor in reader.tensors:
            if tensor.name in names:
                tensor.data[:] = change(tensor.data.astype("float32"), reader)
        reader.data.flush()

    return edit


def _swap_heads(values: Any, reader: Any) -> Any:
    architecture = reader.fields["general.architecture"].contents()
    heads = reader.fields[f"{architecture}.attention.head_count"].contents()
    size = len(values) // heads
    changed = values.copy()
    changed[:size], changed[size : 2 * size] = values[size : 2 * size], values[:size]
    return changed


def _noisy(values: Any, _: Any) -> Any:
    import numpy as np

    size = 0.3 * np.sqrt(np.square(values).mean())
    return values + size * np.random.default_rng(0).standard_normal(values.shape)


def _two_bits(values: Any, _: Any) -> Any:
    import numpy as np

    step = np.abs(values).max(axis=1, keepdims=True) / 2
    return np.clip(np.round(values / step), -2, 1) * step


def other_template(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"<|im_start|>assistant"), "the template is not where it was"
    path.write_bytes(data.replace(b"<|im_start|>assistant", b"<|im_start|>assistent"))


def other_rope(path: Path) -> None:
    """Rotary frequencies of a tenth of the base: the weights are right."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    field = next(f for name, f in reader.fields.items() if name.endswith("rope.freq_base"))
    field.parts[field.data[0]][0] /= 10
    reader.data.flush()


FAULTS: dict[str, Edit] = {
    "head permuted": edited(_swap_heads, "blk.10.attn_q.weight"),
    "matrix zeroed": edited(lambda values, _: 0 * values, "blk.10.ffn_down.weight"),
    "matrix with 30% noise": edited(_noisy, "blk.10.ffn_up.weight"),
    "matrix in 2 bits": edited(_two_bits, "blk.10.ffn_gate.weight"),
    "bias dropped": edited(lambda values, _: 0 * values, "blk.10.attn_k.bias"),
    "wrong template": other_template,
    "wrong rotary base": other_rope,
}
MERGES = {"adapter not merged": 0, "adapter merged twice": 2}


class Bench:
    """One base and adapter, what the adapter says, and files made of them."""

    def __init__(self, source: Path, work: Path) -> None:
        self.work = work
        self.base = fresh_base(source, work / "base")
        self.adapter = make_adapter(self.base, work / "adapter")
        model = models.adapter_model(self.base, self.adapter)
        self.known = parity.reference(model, gate_texts({}), NEW_TOKENS)
        first = {name: getattr(self.known, name)[:FEW] for name in ("prompts", "replies", "rows")}
        self.few = replace(self.known, **first)

    def merged(self, dtype: str, times: int = 1) -> Path:
        """Merged weights, with the adapter added `times` times."""
        into = self.work / f"merged-{dtype}-{times}"
        if not into.exists():
            adapter = shutil.copytree(self.adapter, self.work / f"times-{times}-{dtype}")
            path = adapter / "adapter_config.json"
            config = read(path)
            config["lora_alpha"] *= times
            path.write_text(json.dumps(config), encoding="utf-8")
            model = models.adapter_model(self.base, adapter).model
            merge.merge(model, self.base, adapter, dtype, into)
        return into

    def gguf(self, kind: str, fault: str | None) -> Path:
        """A GGUF file, with a fault or good."""
        own = "bf16" if kind == "bf16" else "f16"
        dtype = "bfloat16" if kind == "bf16" else "float16"
        times = MERGES.get(fault or "", 1)
        complete = self.work / f"{own}-{times}.gguf"
        if not complete.exists():
            write_gguf(self.merged(dtype, times), own, complete, "x", None)
        into = self.work / "file.gguf"
        shutil.copyfile(complete, into)
        if fault in FAULTS:
            FAULTS[fault](into)
        if kind in ("q8_0", "q4_k_m"):
            exact = into.rename(self.work / "exact.gguf")
            run_tool([find_quantizer(find_tree(None)), exact, into, kind])
        return into

    def check(self, kind: str, fault: str | None = None, dtype: str = "float16") -> list[Check]:
        """The checks of a file, as an export makes them."""
        known = self.few if fault else self.known
        limits = Parity().model_dump()
        limit = limits.get(f"max_divergence_{kind}", limits["max_divergence_16_bit"])
        if kind == "merged_16bit":
            file = self.merged(dtype, MERGES.get(fault or "", 1))
            model = models.merged_model(file)
            result = parity.check_model(model, known, limit)
        else:
            dtype = "bfloat16" if kind == "bf16" else dtype
            file = self.gguf(kind, fault)
            with serve(file, context=known.longest + 8) as url:
                result = parity.check_model(models.LlamaCpp(url), known, limit)
        return [*check_weights(self.base, self.adapter, file, kind, dtype), *result]


def faults_of(kind: str, biases: bool) -> list[str]:
    """The faults that a kind of file is tried with."""
    in_file = [] if kind in ("merged_16bit", "bf16") else list(FAULTS)
    if not biases and in_file:
        in_file.remove("bias dropped")
    return [*MERGES, *in_file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=weights.MODELS)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    parser.add_argument("--good-only", action="store_true")
    arguments = parser.parse_args()
    source = weights.folder(arguments.model)
    biases = "qwen" in arguments.model
    results = read(RESULTS) if RESULTS.is_file() else {"models": {}}
    title = weights.MODELS[arguments.model].title
    of_model = results["models"].setdefault(title, {})
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(source, Path(work))
        for kind in arguments.kinds:
            tried = [] if arguments.good_only else faults_of(kind, biases)
            for fault in (None, *tried):
                if (fault or "good") in of_model.get(kind, {}):
                    continue  # of an earlier call
                checks = bench.check(kind, fault)
                row: dict[str, Any] = {check.name: check.value for check in checks}
                row["texts"] = len((bench.few if fault else bench.known).prompts)
                row["failed"] = [check.name for check in checks if not check.passed]
                of_model.setdefault(kind, {})[fault or "good"] = row
                print(kind, fault or "good", json.dumps(row), flush=True)
                tokens = {title: sum(map(len, bench.known.replies))}
                results |= {
                    "machine": "2 CPU cores beside other programs",
                    "tokens": results.get("tokens", {}) | tokens,
                    "python": platform.python_version(),
                    "versions": {
                        name: version(name)
                        for name in ("torch", "transformers", "peft", "gguf", "xllamacpp")
                    },
                    "limits": {c.name: c.limit for c in checks if c.name != "divergence"}
                    | Parity().model_dump(exclude={"new_tokens"}),
                }
                write_json(RESULTS, results)


if __name__ == "__main__":
    main()
