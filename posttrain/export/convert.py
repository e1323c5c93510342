"""Run the converter of a llama.cpp tree, in a process of its own.

    python -m posttrain.export.convert TREE PRE_TOKENIZER MODEL_FOLDER GGUF TYPE NAME

The converter recognises a pre-tokenizer by a hash of how it tokenises one text, and the hash
differs for every vocabulary. PRE_TOKENIZER is the name to write if it does not know the hash; the
caller has checked that the tokenizer has the rules of that name. With `-` the converter refuses.
"""

import importlib
import logging
import sys
from typing import Any


def main(tree: str, known_as: str, model: str, gguf: str, kind: str, name: str) -> None:
    # The converter needs the `gguf` and `conversion` packages of its own tree.
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
