"""REPLUG-LSR (Shi et al. 2023, arXiv 2301.12652, section 4): a frozen generator, an endpoint too, teaches both sides.

Twenty passages for each question, both temperatures 0.1; all documents are embedded anew every `refresh_steps` steps.
The paper trains on halves of running text alone; here questions are mixed in equal parts, as there are so few steps.
"""

from __future__ import annotations

from tuning.retriever_config import RetrieverConfig

TRAIN = RetrieverConfig(
    objective="lsr",
    sides="both",
    learning_rate=2e-5,
    num_train_epochs=1,
    batch_size=8,
    temperature=0.1,
    teacher_temperature=0.1,
    score="mean-probability",
    candidates=20,
    over_retrieve=40,
    refresh_steps=50,
    corpus_task="halves",
    corpus_examples=200,
    corpus_share=0.5,
)
