"""Convert merged weights to a GGUF file with the converter and quantizer of llama.cpp.

    python -m posttrain.export.gguf TREE PRE_TOKENIZER MODEL_FOLDER GGUF TYPE NAME

runs the converter of a llama.cpp tree in a separate process. The converter recognises a
pre-tokenizer by a hash of how it tokenises one text, which differs for every vocabulary.
PRE_TOKENIZER is the name to write if the hash is unknown, or `-` to refuse such a model.
"""

import hashlib
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, ExportError
from posttrain.export.llama_cpp import find_quantizer, find_tree, run_tool
from posttrain.export.merge import stored_dtype

PRE_TOKENIZERS = {"48b8aec477f4f7acd0346e56fb8011f44fbf26f55155847af5efbd709eeec55d": "qwen2"}
"""llama.cpp's names for how text is split before byte-pair encoding, by the SHA-256 of normalizer
and pre_tokenizer in tokenizer.json. Qwen2 and later models: NFC, then one regular expression."""


def known_pre_tokenizer(model: Path) -> str | None:
    """llama.cpp's name for the splitting rules in the model's tokenizer.json; None if unknown."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rules = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    text = json.dumps(rules, sort_keys=True).encode("utf-8")
    return PRE_TOKENIZERS.get(hashlib.sha256(text).hexdigest())


def write_gguf(merged: Path, kind: str, into: Path, name: str, llama_cpp: str | None) -> None:
    """Write the GGUF file `into`: f16, bf16 and q8_0 directly, q4_k_m from a 16-bit file. Raises
    ConfigError if llama.cpp cannot be fetched, or does not know the tokenizer or the architecture,
    and ExportError if a tool failed."""
    tree = find_tree(llama_cpp)
    if kind != "q4_k_m":
        _convert(tree, merged, kind, into, name)
        return
    quantizer = find_quantizer(tree)
    kind_16_bit = "bf16" if stored_dtype(merged) == "bfloat16" else "f16"
    file_16_bit = into.with_name(f"{into.name}.{kind_16_bit}")
    try:
        _convert(tree, merged, kind_16_bit, file_16_bit, name)
        run_tool([quantizer, file_16_bit, into, kind])
    finally:
        file_16_bit.unlink(missing_ok=True)


def _convert(tree: Path, merged: Path, kind: str, into: Path, name: str) -> None:
    pre_tokenizer = known_pre_tokenizer(merged) or "-"
    command = [sys.executable, "-m", "posttrain.export.gguf"]
    try:
        run_tool([*command, tree, pre_tokenizer, merged, into, kind, name], HF_HUB_OFFLINE="1")
    except ExportError as error:
        if "pre-tokenizer was not recognized" in str(error):
            raise ConfigError(
                "llama.cpp's converter does not know this tokenizer, and its rules in "
                f"tokenizer.json are not those of {', '.join(PRE_TOKENIZERS.values())}: a GGUF "
                "file would split text differently. Use merged_16bit, or a newer llama.cpp: "
                "--llama-cpp TREE (export.llama_cpp)"
            ) from None
        if "is not supported" in str(error):
            raise ConfigError(f"llama.cpp cannot hold this model: {error}") from None
        raise


def _run_converter(
    tree: str, pre_tokenizer: str, model: str, gguf: str, kind: str, name: str
) -> None:
    sys.path.insert(0, tree)  # the converter needs the `gguf` and `conversion` packages there
    converter = importlib.import_module("convert_hf_to_gguf")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    if pre_tokenizer != "-":
        base = importlib.import_module("conversion.base").TextModel
        recognise = base.get_vocab_base_pre

        def get_vocab_base_pre(self: Any, tokenizer: Any) -> Any:
            try:
                return recognise(self, tokenizer)
            except NotImplementedError:
                return pre_tokenizer

        base.get_vocab_base_pre = get_vocab_base_pre
    options = ["--outfile", gguf, "--outtype", kind, "--model-name", name]
    sys.argv = ["convert_hf_to_gguf", *options, model]
    converter.main()


if __name__ == "__main__":
    _run_converter(*sys.argv[1:])
