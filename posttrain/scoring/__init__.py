"""Scores of pairs and of problems, before and after, and the verdicts of a judge."""
