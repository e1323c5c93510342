"""The library behind the scripts, in wings: each imports only those below it."""

import os
import signal
import sys
from pathlib import Path

# Libraries report their use to the hub when imported. Here, before any of them: later is too late.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Ctrl-C while a script is still importing ends it without a traceback; then run_main sees to it.
if Path(sys.argv[0]).parent.name == "scripts":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
