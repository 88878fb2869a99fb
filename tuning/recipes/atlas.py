"""Atlas's four retriever losses (Izacard et al. 2022, arXiv 2208.03299), on the query side, with fresh candidates.

Query-side training is what the paper finds best with few examples: no document is embedded again. Likelihoods are
divided by the tokens of the answer, and both temperatures are 0.1 for cosines (0.01 on unnormalised scores there).
"""

from __future__ import annotations

from dataclasses import replace

from tuning.retriever_config import RetrieverConfig

PDIST = RetrieverConfig(
    objective="pdist",
    learning_rate=4e-5,
    num_train_epochs=2,
    temperature=0.1,
    teacher_temperature=0.1,
    score="mean-logprob",
    candidates=10,
    refresh_steps=25,
)
EMDR2 = replace(PDIST, objective="emdr2")
LOOP = replace(PDIST, objective="loop", candidates=5)
"""Each passage is left out in turn, so that a question takes K prompts of K − 1 passages."""
ADIST = replace(PDIST, objective="adist", candidates=5, teacher_temperature=0.01, refresh_steps=0)
"""Attention times value length differs little between passages, hence the low temperature."""
