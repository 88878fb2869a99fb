"""Answers questions from a corpus; usable alone in a notebook. Imports nothing of tuning, agents or apps."""
