"""The library behind the scripts, in wings: each imports only those below it."""

import os

# Libraries report their use to the hub when imported. Here, before any of them: later is too late.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
