"""Paths, files, errors, processes, the disk: what the rest stands on. Imports nothing of ours."""
