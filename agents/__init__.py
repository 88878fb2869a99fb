"""Decides: which arm, which tool, when to stop. May import rag; never tuning."""
