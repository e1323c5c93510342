"""The tests of inside/ belong to processes that have the card: test_pretend_gpu.py starts those."""

from tests.pretend_gpu import installed

collect_ignore = [] if installed() else ["inside"]
