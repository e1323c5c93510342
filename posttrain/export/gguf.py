"""Convert merged weights to a GGUF file with the converter and quantizer of llama.cpp."""

import json
import sys
from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, ExportError
from posttrain.export.llama_cpp import find_quantizer, find_tree, run_tool

# How Qwen2 and later models split text before byte-pair encoding, as in tokenizer.json, under the
# name that llama.cpp has for it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": QWEN2_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
    }
}


def known_pre_tokenizer(model: Path) -> str | None:
    """llama.cpp's name for the splitting rules in the model's tokenizer.json; None if unknown."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, rules in PRE_TOKENIZERS.items():
        if all(tokenizer.get(key) == rule for key, rule in rules.items()):
            return name
    return None


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
    own = "bf16" if config["dtype"] == "bfloat16" else "f16"
    whole = into.with_name(f"{into.name}.{own}")
    try:
        _convert(tree, merged, own, whole, name)
        run_tool([quantizer, whole, into, kind])
    finally:
        whole.unlink(missing_ok=True)


def _convert(tree: Path, merged: Path, kind: str, into: Path, name: str) -> None:
    pre_tokenizer = known_pre_tokenizer(merged) or "-"
    command = [sys.executable, "-m", "posttrain.export.convert"]
    try:
        run_tool([*command, tree, pre_tokenizer, merged, into, kind, name], HF_HUB_OFFLINE="1")
    except ExportError as error:
        if "pre-tokenizer was not recognized" in str(error):
            raise ConfigError(
                "llama.cpp's converter does not know this tokenizer: its pre-tokenizer is neither "
                f"in the converter's table nor one of {', '.join(PRE_TOKENIZERS)} by its rules in "
                "tokenizer.json. A file that splits text otherwise would be wrong, so there is "
                "none; a newer llama.cpp may know it: --llama-cpp TREE (export.llama_cpp). "
                "merged_16bit does not need it"
            ) from None
        if "is not supported" in str(error):
            raise ConfigError(f"llama.cpp cannot hold this model: {error}") from None
        raise
