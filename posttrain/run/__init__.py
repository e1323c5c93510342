"""The folder of a run: its files, its checkpoints, its versions, and what it takes on the disk."""
