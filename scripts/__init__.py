"""The commands of the project: one file a command, each runnable on its own."""
