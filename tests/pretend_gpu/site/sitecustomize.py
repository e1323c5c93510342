"""Python imports this at its start because the folder is on PYTHONPATH; it puts the card in."""

from tests.pretend_gpu import hooks, installed

if installed():
    hooks.install()
