"""Convert merged weights to a GGUF file with the converter and quantizer of llama.cpp."""

import hashlib
import json
import sys
from pathlib import Path

from posttrain.base.errors import ConfigError, ExportError
from posttrain.export.llama_cpp import find_quantizer, find_tree, run_tool

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
    """Write the GGUF file `into`: f16, bf16 and q8_0 directly, q4_k_m from a 16-bit file.

    Raises:
        ConfigError: llama.cpp cannot be fetched, or does not know the tokenizer or architecture.
        ExportError: a tool failed.
    """
    tree = find_tree(llama_cpp)
    if kind != "q4_k_m":
        _convert(tree, merged, kind, into, name)
        return
    quantizer = find_quantizer(tree)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    kind_16_bit = "bf16" if config["dtype"] == "bfloat16" else "f16"
    file_16_bit = into.with_name(f"{into.name}.{kind_16_bit}")
    try:
        _convert(tree, merged, kind_16_bit, file_16_bit, name)
        run_tool([quantizer, file_16_bit, into, kind])
    finally:
        file_16_bit.unlink(missing_ok=True)


def _convert(tree: Path, merged: Path, kind: str, into: Path, name: str) -> None:
    pre_tokenizer = known_pre_tokenizer(merged) or "-"
    command = [sys.executable, "-m", "posttrain.export.convert"]
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
