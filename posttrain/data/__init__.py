"""Rows of files and of the hub -> problems and preference pairs, and the report on them."""
