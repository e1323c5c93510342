"""Preference pairs: formats by name, and the report on what they will teach."""
