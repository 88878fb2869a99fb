"""The measured decision: measure the arms (`run`), conclude (`decide`), read it back (`load_decision`)."""

from __future__ import annotations

from agents.arms import run
from agents.compare import ArmCost
from agents.record import SavedDecision, load_decision
from agents.rule import DecideConfig, Decision, decide

__all__ = ["ArmCost", "DecideConfig", "Decision", "SavedDecision", "decide", "load_decision", "run"]
