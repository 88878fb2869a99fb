"""Answers as people rated them: KTO on thumbs, DPO on pairs; see `tuning.preference_train`.

Its rows are ratings, not questions, so this recipe has a training function of its own where the others have `rows`.
"""

from __future__ import annotations

from tuning.preference_train import PreferenceConfig, train_preference

TRAIN = PreferenceConfig()
NEEDS_PASSAGES = False

__all__ = ["NEEDS_PASSAGES", "TRAIN", "train_preference"]
