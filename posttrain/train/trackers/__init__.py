"""Trackers beside the run folder."""
