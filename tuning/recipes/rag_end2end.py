"""RAG-end2end (Siriwardhana et al. 2023, arXiv 2210.02627): both sides by the marginal likelihood of the answers.

Questions and reconstructed statements in equal parts; all documents are embedded anew every `refresh_steps` steps, and
between two refreshes the candidates are scored by the encoder as it is. The generator is frozen here: train it with a
recipe of its own, on what the new retriever finds.
"""

from __future__ import annotations

from tuning.retriever_config import RetrieverConfig

TRAIN = RetrieverConfig(
    objective="emdr2",
    sides="both",
    learning_rate=3e-5,
    num_train_epochs=1,
    batch_size=8,
    temperature=0.1,
    score="mean-logprob",
    candidates=5,
    over_retrieve=20,
    refresh_steps=50,
    corpus_task="statements",
    corpus_examples=200,
    corpus_share=0.5,
)
