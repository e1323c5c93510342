"""Run llama.cpp's converter of a pinned tree, in a process of its own.

    python -m posttrain.export.convert TREE PRE_TOKENIZER MODEL_FOLDER GGUF TYPE NAME

The converter knows a tokenizer's pre-tokenizer by a hash of how one text is tokenised, which is
new for every vocabulary. PRE_TOKENIZER is the name to write where it does not know the hash: our
caller has compared the tokenizer's own rules with that name's. `-` is none, and then the converter
refuses.
"""

import importlib
import logging
import sys
from typing import Any


def main(tree: str, known_as: str, model: str, gguf: str, kind: str, name: str) -> None:
    # The tree's own `gguf` and `conversion` packages belong to this converter and no other.
    sys.path.insert(0, tree)
    converter = importlib.import_module("convert_hf_to_gguf")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    if known_as != "-":
        base = importlib.import_module("conversion.base").TextModel
        recognise = base.get_vocab_base_pre

        def get_vocab_base_pre(self: Any, tokenizer: Any) -> Any:
            try:
                return recognise(self, tokenizer)
            except NotImplementedError:
                return known_as

        base.get_vocab_base_pre = get_vocab_base_pre
    options = ["--outfile", gguf, "--outtype", kind, "--model-name", name]
    sys.argv = ["convert_hf_to_gguf", *options, model]
    converter.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
