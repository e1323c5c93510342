"""Write pins.json: what is replaced, and in which versions. Run by `-m tests.pretend_gpu --pin`.

Do so after reading what changed: this only says that the replacements still stand.
"""

import importlib
import json
import os
from importlib.metadata import version

from tests.pretend_gpu import hooks

PACKAGES = ("bitsandbytes", "torch", "triton", "trl", "unsloth", "unsloth_zoo", "xformers")


def main() -> None:
    os.environ[hooks.REPINNING] = "1"
    importlib.import_module("unsloth")
    importlib.import_module("trl")
    content = {
        "versions": {name: version(name) for name in PACKAGES},
        "sources": dict(sorted(hooks.replaced.items())),
    }
    hooks.PINS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(content['sources'])} names pinned in {hooks.PINS}")


if __name__ == "__main__":
    main()
