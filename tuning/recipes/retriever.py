"""The query side of the retriever by contrast: the right passage against mined wrong ones, the index left as it is.

Questions made by rule from the documents are mixed in, so that documents without labelled questions are asked about.
"""

from __future__ import annotations

from tuning.retriever_config import RetrieverConfig

TRAIN = RetrieverConfig(
    learning_rate=3e-5,
    num_train_epochs=2,
    temperature=0.05,
    corpus_task="cloze",
    corpus_examples=2000,
    corpus_share=0.8,
)
