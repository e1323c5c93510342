"""Run a script, or a module with -m, on the pretended card.

./run python -m tests.pretend_gpu scripts/grpo.py --config configs/grpo_demo.yaml ...
./run python -m tests.pretend_gpu --capability 7.5 scripts/dpo.py ...
./run python -m tests.pretend_gpu -m pytest tests/reliability/test_health.py
./run python -m tests.pretend_gpu --pin        after reading what a new Unsloth changed
"""

import os
import sys

from tests.pretend_gpu import CARD, environment


def main(argv: list[str]) -> None:
    capability = os.environ.get(CARD, "8.0")
    if argv[:1] == ["--capability"] and len(argv) > 1:
        capability, argv = argv[1], argv[2:]
    if not argv or argv[0] in ("-h", "--help"):
        sys.exit(__doc__)
    if argv == ["--pin"]:
        argv = ["-m", "tests.pretend_gpu.pins"]
    os.execve(sys.executable, [sys.executable, *argv], environment(capability))


if __name__ == "__main__":
    main(sys.argv[1:])
