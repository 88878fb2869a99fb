"""Both sides of the retriever by contrast: one encoder for questions and documents, which are embedded again with it.

Every step embeds its passages with gradients, so it takes some ten times as long as the query side alone; two mined
negatives for each question, besides the right passages of the other questions. What comes out is the mean of the
trained weights and the untouched ones: trained alone they gained more on their own documents, and lost it on others.
"""

from __future__ import annotations

from tuning.retriever_config import RetrieverConfig

TRAIN = RetrieverConfig(
    sides="both",
    learning_rate=3e-5,
    num_train_epochs=1,
    batch_size=16,
    temperature=0.05,
    hard_negatives=2,
    corpus_task="cloze",
    corpus_examples=1000,
    corpus_share=0.6,
    average=0.5,
)
